"""Projected gradient descent on the true-label loss: EGA's adversarial examples (eq. 5 and §3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from repro.data.images import IMAGENET, Normalisation, constant
from repro.models.dual_batch_norm import has_dual_batch_norm, route_batch_norm

Target = Int[Tensor, " n"] | Float[Tensor, "n classes"]
"""Class indices, or class probabilities where labels are mixed."""


@dataclass(frozen=True)
class AttackSettings:
    """Strength and space of an attack; the defaults are the paper's choice ε = 1, n = 1 (EGA §4.3, Fig. 7).

    Raises:
        ValueError: a number is negative or `steps` is below one.
    """

    epsilon: float = 1.0
    """Radius of the allowed change per value: 1/255 of the pixel range, as AdvProp, which EGA follows for ε."""
    step: float = 1.0
    """Length of one step, in the unit of `epsilon`; AdvProp's attacker uses 1."""
    steps: int = 1
    """Number n of gradient steps."""
    random_start: bool = True
    """Start anywhere in the ball, as Madry et al. 2018 and AdvProp's attacker; the paper does not say."""
    space: Literal["pixels", "normalised"] = "pixels"
    """`pixels`: ε/255 around and inside [0, 1] of the pixels. `normalised`: ε around the normalised tensor, which is
    then clamped to [0, 1] itself, as the released code does; values may leave the ball by that clamp."""
    statistics: Literal["eval", "train"] = "eval"
    """Mode of the network during the attack: `eval` uses running statistics and changes none of them ("parameters not
    updating", §3.2); `train` is the released code's."""

    precision: Literal["float32", "training"] = "float32"
    """Of the network during the attack: `training` is that of the training, under which bfloat16 rounds an image by a
    fifth of ε and gives a sixth of its pixels another value."""

    def __post_init__(self) -> None:
        """Reject impossible numbers."""
        if self.epsilon < 0 or self.step < 0 or self.steps < 1:
            raise ValueError(
                f"epsilon={self.epsilon}, step={self.step}, steps={self.steps}: "
                "epsilon and step must not be negative, steps must be at least 1"
            )

    @classmethod
    def advprop(cls, epsilon: int = 1) -> "AttackSettings":
        """The series of Fig. 7: n = ε + 1 steps of 1/255, but one step for ε = 1."""
        return cls(epsilon=float(epsilon), steps=1 if epsilon == 1 else epsilon + 1)

    @classmethod
    def released(cls) -> "AttackSettings":
        """What the authors' released `pgd_attack.py` does: ε = 1 and step 0.01 on the normalised tensor, train mode."""
        return cls(epsilon=1.0, step=0.01, steps=1, space="normalised", statistics="train")


def pgd_attack(
    model: nn.Module,
    images: Float[Tensor, "n 3 h w"],
    target: Target,
    settings: AttackSettings,
    normalisation: Normalisation = IMAGENET,
    noise: Float[Tensor, "n 3 h w"] | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Images of the ε-ball on which the cross-entropy with the true labels is higher (EGA eq. 5, untargeted).

    A model with dual batch norms is attacked through the auxiliary half (§3.2, Fig. 3). With `statistics="eval"`
    nothing of the model changes: neither statistics nor gradients, nor its mode. Weight gradients are never
    computed, so that one step costs one forward and half of a backward pass.

    Args:
        model: network from normalised images to logits.
        images: normalised images.
        target: true labels, or class probabilities.
        settings: strength and space.
        normalisation: how `images` were made from pixels.
        noise: start of the attack in [-1, 1] of the ball's radius, drawn if None and `random_start`.

    Returns:
        Normalised images, detached.
    """
    mean, std, unit = _coordinates(settings, normalisation, images.device)
    radius = settings.epsilon * unit
    origin = images.detach() * std + mean
    moved = origin
    if settings.random_start:
        noise = torch.rand_like(origin) * 2 - 1 if noise is None else noise
        moved = _project(origin + radius * noise, origin, radius)
    route = route_batch_norm(model, "adversarial") if has_dual_batch_norm(model) else nullcontext()
    own = torch.autocast(images.device.type, enabled=False) if settings.precision == "float32" else nullcontext()
    with _frozen(model, training=settings.statistics == "train"), route, own:
        for _ in range(settings.steps):
            gradient = _input_gradient(model, (moved - mean) / std, target)
            moved = _project(moved + settings.step * unit * gradient.sign(), origin, radius)
    return (moved - mean) / std


def _coordinates(
    settings: AttackSettings, normalisation: Normalisation, device: torch.device
) -> tuple[Float[Tensor, "3 1 1"] | float, Float[Tensor, "3 1 1"] | float, float]:
    """Mean and deviation that lead from `images` to the space of the attack, and the unit of ε in that space."""
    if settings.space == "normalised":
        return 0.0, 1.0, 1.0
    mean, std = (constant(values, device).view(3, 1, 1) for values in (normalisation.mean, normalisation.std))
    return mean, std, 1 / 255


def _project(
    moved: Float[Tensor, "n 3 h w"], origin: Float[Tensor, "n 3 h w"], radius: float
) -> Float[Tensor, "n 3 h w"]:
    """The nearest point of the ball and of [0, 1]; the interval comes last, as in the released code."""
    return torch.clamp(moved, origin - radius, origin + radius).clamp(0, 1)


def _input_gradient(model: nn.Module, images: Float[Tensor, "n 3 h w"], target: Target) -> Float[Tensor, "n 3 h w"]:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        # The sum keeps the gradient of an image independent of the batch it sits in.
        loss = F.cross_entropy(model(images), target, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


@contextmanager
def _frozen(model: nn.Module, training: bool) -> Iterator[None]:
    """Set every layer's mode and stop weight gradients inside the block; restores both exactly."""
    modes = [(layer, layer.training) for layer in model.modules()]
    wanted = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.train(training)
        for weight, _ in wanted:
            weight.requires_grad_(False)
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        for weight, flag in wanted:
            weight.requires_grad_(flag)
