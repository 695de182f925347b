"""The engine of Score-CAM and ScoreCAM++: what the network says about the image seen through each channel.

A *mask rule* turns channel k of an activation into a mask H_k of input size; the engine runs the network
on X∘H_k for every channel of every image and keeps two numbers per channel, the target's logit and its
log-probability. Every score space, baseline and weighting is arithmetic on these, so explanations with the
same mask rule share one run.

Exact savings: channels whose mask is zero everywhere share one pass of the all-zero input (a dead channel
costs nothing), batches span images, and on a private copy of the network batch norm is folded, the layout is
channels-last and, on a CPU, sums and rectifiers are fused into the convolutions before them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from repro.explain.engine import (
    agrees,
    can_fuse,
    convert,
    fold_batch_norm,
    fuse_convolutions,
    inference_copy,
    pack_filters,
)
from repro.explain.layer import (
    Reshape,
    Target,
    batch_within_budget,
    checked_logits,
    evaluation_mode,
    forward_with_activation,
    resolve_target,
    run_in_shrinking_batches,
    slice_target,
    tokens_to_grid,
)
from repro.vocabulary import Gate

ScoreSpace = Literal["probability", "logit"]
Baseline = Literal["none", "input", "black"]

_TRACING_TOLERANCE = 1e-4  # of the largest logit; rounding alone stays below 1e-5
# CPU: beyond 8 images of 224² the activations leave the cache (digest §4); smaller images, larger batches.
_PIXELS_AT_ONCE = {"cpu": 8 * 224**2, "cuda": 128 * 224**2}
_PIXELS_AT_ONCE_OTHER = 32 * 224**2


def gate_function(gate: Gate, values: Tensor) -> Tensor:
    """ScoreCAM++'s gates (paper Table 5); `sigmoid_relu` is the released code's sigmoid(relu(u))."""
    if gate == "tanh":
        return values.tanh()
    if gate == "relu":
        return values.relu()
    if gate == "sigmoid":
        return values.sigmoid()
    if gate == "sigmoid_relu":
        return values.relu().sigmoid()
    if gate == "mish":
        return F.mish(values)
    return F.silu(values)


@dataclass(frozen=True)
class MaskRule:
    """How a channel becomes a mask; explanations with equal rules share their masked passes."""

    gate: Gate | None = None
    """Gate of the upsampled channel; None: min-max normalisation (Score-CAM)."""
    normalise: Literal["upsample_first", "lowres_first"] = "upsample_first"
    """Min-max after upsampling, or on the layer's own grid before it. Gates always come after."""
    align_corners: bool = False
    """Bilinear upsampling with corner pixels aligned (pytorch-grad-cam's UpsamplingBilinear2d)."""

    def upsample(self, channels: Float[Tensor, "b 1 a c"], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
        """The rule's bilinear interpolation to input size."""
        return F.interpolate(channels, size=size, mode="bilinear", align_corners=self.align_corners)

    def masks(self, channels: Float[Tensor, "b 1 a c"], size: tuple[int, int]) -> Float[Tensor, "b 1 h w"]:
        """Masks of input size. A constant channel has no min-max; see `blank`."""
        if self.gate is not None:
            return gate_function(self.gate, self.upsample(channels, size))
        if self.normalise == "lowres_first":
            return self.upsample(_minmax(channels), size)
        return _minmax(self.upsample(channels, size))

    def blank(self, activations: Float[Tensor, "n k a c"]) -> Bool[Tensor, "n k"]:
        """Channels whose mask is zero everywhere: constant (min-max) or all zero (gates with gate(0) = 0).

        Constancy is judged on the layer's grid: upsampling a constant leaves rounding noise, which a min-max
        of the upsampled channel would stretch to a random mask.
        """
        if self.gate is None:
            return activations.amax(dim=(2, 3)) == activations.amin(dim=(2, 3))
        zero = (activations == 0).all(dim=3).all(dim=2)
        return zero & (self.gate not in ("sigmoid", "sigmoid_relu"))


def _minmax(channels: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    low = channels.amin(dim=(2, 3), keepdim=True)
    extent = channels.amax(dim=(2, 3), keepdim=True) - low
    # Two values one rounding step apart may be upsampled to one and the same: the mask is then zero.
    return (channels - low).div_(extent.masked_fill_(extent == 0, 1))


@dataclass(frozen=True)
class EngineSettings:
    """How the masked passes are run; none of this changes a map beyond rounding, except `dtype`."""

    batch_size: int | None = None
    """Masked images per pass; None: `default_batch_size`. Halved when memory runs out."""
    memory_budget_mib: float | None = None
    """MiB that the activations of one pass may take (an estimate, see `forward_bytes`); None: no limit."""
    dtype: torch.dtype | None = None
    """Floating type of the masked passes, e.g. torch.bfloat16; None: the model's own."""
    fold_batch_norm: bool = True
    """Fold batch norm into convolutions where the network can be traced and the folded network agrees."""
    fuse_convolutions: bool = True
    """Likewise, run each convolution with the sum and the rectifier after it in one call (CPU, channels-last, float32
    or bfloat16)."""
    channels_last: bool = True
    """Channels-last memory layout of the masked passes."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1, or None")
        if self.memory_budget_mib is not None and self.memory_budget_mib <= 0:
            raise ValueError(f"memory_budget_mib is {self.memory_budget_mib}; expected more than 0, or None")


def default_batch_size(inputs: Float[Tensor, "n c h w"]) -> int:
    """Masked images per pass: at 224² 8 on CPU, 128 on CUDA, 32 elsewhere; in proportion for other sizes."""
    pixels = _PIXELS_AT_ONCE.get(inputs.device.type, _PIXELS_AT_ONCE_OTHER)
    return max(1, pixels // (inputs.shape[-2] * inputs.shape[-1]))


@dataclass(frozen=True)
class TargetScores:
    """The target class's score on both scales, for any set of inputs."""

    logit: Float[Tensor, "*shape"]
    log_probability: Float[Tensor, "*shape"]

    def in_space(self, space: ScoreSpace) -> Float[Tensor, "*shape"]:
        """Softmax probability or raw logit."""
        return self.log_probability.exp() if space == "probability" else self.logit


@dataclass(frozen=True)
class MaskedScores:
    """Result of one run of the masked passes: all that Score-CAM and ScoreCAM++ need to make their maps."""

    rule: MaskRule
    activations: Float[Tensor, "n k a c"]
    size: tuple[int, int]
    """Height and width of the input images."""
    target: Int[Tensor, " n"]
    masked: TargetScores
    """f(X∘H_k), shape (n, k)."""
    whole: TargetScores
    """f(X), shape (n, 1)."""
    black: TargetScores
    """f(0), the all-zero input (after normalisation: the data set's mean colour), shape (n, 1)."""

    def scores(self, space: ScoreSpace, baseline: Baseline = "none") -> Float[Tensor, "n k"]:
        """f(X∘H_k), minus f(X) (`input`: ScoreCAM++ eq. 5, 10) or f(0) (`black`: Score-CAM paper)."""
        scores = self.masked.in_space(space)
        if baseline == "none":
            return scores
        return scores - (self.whole if baseline == "input" else self.black).in_space(space)


class MaskedPasses:
    """The masked forward passes of one model and layer; `run` may be called for any images and rules."""

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        *,
        reshape: Reshape | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.reshape: Reshape = reshape or tokens_to_grid
        self.settings = settings or EngineSettings()

    def run(self, inputs: Float[Tensor, "n c h w"], target: Target, rule: MaskRule) -> MaskedScores:
        """Score each channel's masked image of each input for its target (None: the predicted class)."""
        batch = self.settings.batch_size or default_batch_size(inputs)
        activations, classes, logits = self._whole_images(inputs, target, batch)
        with torch.no_grad():
            network = self._network(inputs[:1], logits[:1], batch)
            if self.settings.memory_budget_mib is not None:
                sample = self._prepared(inputs[:1])
                batch = batch_within_budget(network, sample, self.settings.memory_budget_mib, batch)
            return self._score(network, inputs, activations, classes, rule, batch)

    def _whole_images(self, inputs: Tensor, target: Target, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

        def step(part: slice) -> None:
            logits, recorded = forward_with_activation(self.model, self.layer, inputs[part], differentiable=False)
            classes = resolve_target(slice_target(target, part), logits)
            parts[part.start] = (self.reshape(recorded), classes, logits)

        with evaluation_mode(self.model):
            run_in_shrinking_batches(step, len(inputs), batch)
        activations, classes, logits = zip(*(parts[start] for start in sorted(parts)), strict=True)
        return torch.cat(activations), torch.cat(classes), torch.cat(logits)

    def _network(self, image: Tensor, reference: Tensor, batch: int) -> nn.Module:
        """The fast private copy: folded and fused where that holds, in the layout and type asked for."""
        settings, network = self.settings, inference_copy(self.model)
        faster = fold_batch_norm(network) if settings.fold_batch_norm else network
        if settings.fuse_convolutions and settings.channels_last and self._can_fuse(image):
            faster = fuse_convolutions(faster, image)
        if faster is not network and agrees(faster(image), reference, tolerance=_TRACING_TOLERANCE):
            network = faster
        network = convert(network, dtype=settings.dtype, channels_last=settings.channels_last)
        pack_filters(network, batch)
        return network

    def _can_fuse(self, image: Tensor) -> bool:
        return all(can_fuse(dtype, image.device) for dtype in (image.dtype, self.settings.dtype or image.dtype))

    def _prepared(self, images: Tensor) -> Tensor:
        dtype = self.settings.dtype or images.dtype
        memory_format = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return images.to(dtype=dtype, memory_format=memory_format)

    def _score(
        self,
        network: nn.Module,
        inputs: Tensor,
        activations: Tensor,
        classes: Tensor,
        rule: MaskRule,
        batch: int,
    ) -> MaskedScores:
        images, channels = activations.shape[:2]
        size = (inputs.shape[-2], inputs.shape[-1])
        # One flat list of jobs: masked channels, then whole images, so that batches span images.
        image_of, channel_of = (~rule.blank(activations)).nonzero(as_tuple=True)
        scored = TargetScores(*inputs.new_empty((2, len(image_of), 1), dtype=_score_dtype(inputs.dtype)))
        buffer = self._prepared(inputs[:1].expand(min(batch, max(1, len(image_of))), -1, -1, -1).clone())

        def step(part: slice) -> None:
            image = image_of[part]
            masks = rule.masks(activations[image, channel_of[part], None], size)
            masked = torch.mul(inputs[image], masks, out=buffer[: len(image)])
            scores = _target_scores(_run(network, masked), classes[image])
            scored.logit[part] = scores.logit
            scored.log_probability[part] = scores.log_probability

        run_in_shrinking_batches(step, len(image_of), batch)
        black = self._logits(network, torch.zeros_like(inputs[:1]), 1).expand(images, -1)
        masked = _target_scores(black, classes, repeat=channels)
        masked.logit[image_of, channel_of] = scored.logit[:, 0]
        masked.log_probability[image_of, channel_of] = scored.log_probability[:, 0]
        whole = _target_scores(self._logits(network, inputs, batch), classes)
        return MaskedScores(rule, activations, size, classes, masked, whole, _target_scores(black, classes))

    def _logits(self, network: nn.Module, images: Tensor, batch: int) -> Tensor:
        parts: dict[int, Tensor] = {}

        def step(part: slice) -> None:
            parts[part.start] = _run(network, self._prepared(images[part]))

        run_in_shrinking_batches(step, len(images), batch)
        return torch.cat([parts[start] for start in sorted(parts)])


def _run(network: nn.Module, images: Tensor) -> Float[Tensor, "n classes"]:
    with torch.inference_mode():
        logits = checked_logits(network(images), len(images))
    return logits.to(_score_dtype(logits.dtype))


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _target_scores(logits: Float[Tensor, "n classes"], classes: Int[Tensor, " n"], repeat: int = 1) -> TargetScores:
    """Scores of each image's class, shape (n, repeat)."""
    logit = logits.gather(1, classes[:, None])
    log_probability = logit - logits.logsumexp(dim=1, keepdim=True)
    return TargetScores(logit.repeat(1, repeat), log_probability.repeat(1, repeat))
