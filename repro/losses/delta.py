"""DELTA: feature-map regularisation with supervised attention (Li et al. 2019), written from its formulas.

Ω = ½ Σ_layers Σ_batch Σ_channels c · w_c · ‖FM_target − FM_source‖² / (h·w), summed over the batch, on convolution
outputs before batch norm and ReLU; w is a softmax over the standardised loss increase that knocking each filter out
causes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repro.losses.dfg import sample_cross_entropy
from repro.models.split_classifier import SplitClassifier


def delta_regularizer(
    target: Sequence[Float[Tensor, "*r n _c _h _w"]],
    source: Sequence[Float[Tensor, "*r n _c _h _w"]],
    weights: Sequence[Float[Tensor, "*r _c"]],
) -> Float[Tensor, "*r"]:
    """Ω, one value per replica; summed (not averaged) over the batch, as in DELTA's released code.

    Args:
        target: feature maps of the network in training, one entry per layer.
        source: those of the frozen source network on the same images.
        weights: per layer the channel weights, each summing to one (`channel_attention`).

    Raises:
        ValueError: if the three sequences differ in length.
    """
    if not len(target) == len(source) == len(weights):
        raise ValueError(
            f"got {len(target)} target layers, {len(source)} source layers and {len(weights)} weight vectors; "
            "they must be one per layer"
        )
    terms = []
    for ours, theirs, weight in zip(target, source, weights, strict=True):
        distance = (ours - theirs.detach()).square().mean((-2, -1)).sum(-2)  # (*r, c): mean over h·w, sum over n
        terms.append(0.5 * weight.shape[-1] * (weight * distance).sum(-1))
    return torch.stack(terms).sum(0)


def channel_attention(loss_increase: Float[Tensor, "*r c"], temperature: float = 5.0) -> Float[Tensor, "*r c"]:
    """DELTA's channel weights: softmax over channels of the z-scored knock-out loss divided by `temperature`."""
    centred = loss_increase - loss_increase.mean(-1, keepdim=True)
    spread = loss_increase.std(-1, keepdim=True).clamp(min=torch.finfo(loss_increase.dtype).tiny)
    return torch.softmax(centred / spread / temperature, dim=-1)


@torch.no_grad()
def knockout_loss_increase(
    network: SplitClassifier, conv: nn.Module, images: Float[Tensor, "n i h w"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "c"]:
    """Mean loss without each filter of `conv` minus the loss with it; positive = the filter helps.

    `network` maps images to logits and is used in the mode it is in (evaluation, for DELTA). A filter is removed
    with its bias. What lies before `conv` runs once, what lies behind it (a residual block as a whole) once per filter.

    Raises:
        ValueError: `conv` is no convolution of `network`.
    """
    stages = network.stages()
    at = next((i for i, stage in enumerate(stages) if any(module is conv for module in stage.modules())), None)
    if at is None or not isinstance(conv, nn.Conv2d):
        raise ValueError(f"conv is a {type(conv).__name__}; knock-out weights need an nn.Conv2d of the network")
    fixed = nn.Sequential(*stages[:at])(images)
    tail = nn.Sequential(*stages[at:])
    if stages[at] is conv:
        fixed, tail = conv(fixed), tail[1:]
    removed: int | None = None

    def silence(output: Tensor) -> Tensor:
        keep = torch.ones(output.shape[1], dtype=output.dtype, device=output.device)
        if removed is not None:
            keep[removed] = 0
        return output * keep[:, None, None]

    handle = conv.register_forward_hook(lambda _, __, output: silence(output))
    losses: list[Tensor] = []
    try:
        for removed in (None, *range(conv.out_channels)):  # noqa: B007 (read by `silence`)
            logits = tail(silence(fixed) if stages[at] is conv else fixed)
            losses.append(sample_cross_entropy(logits, labels).mean())
    finally:
        handle.remove()
    return torch.stack(losses[1:]) - losses[0]
