"""The area control: does a method win because its maps point better, or because they let more of the image through?"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOG_EXPONENT_LIMIT = 10.0
BISECTIONS = 30


class AreaMatched(NamedTuple):
    """Maps raised to a power, and how well that met the wanted area."""

    maps: Float[Tensor, "n m h w"]
    exponent: Float[Tensor, "n m"]
    """γ; above 1 the map was narrowed, below 1 widened."""
    reached: Bool[Tensor, "n m"]
    """False where no power can give the area: too few pixels above zero, or the map is constant."""


def area_matched(
    masks: Float[Tensor, "n m h w"], target_area: Float[Tensor, "n m"], tolerance: float = 1e-4
) -> AreaMatched:
    """`masks`^γ with γ > 0 such that its mean is `target_area`: the same ranking of pixels, another area.

    The mean falls strictly with γ wherever some pixel lies inside 0..1, so bisection on log γ finds it
    (digest scorecampp §1.4, the control row). γ stays within e^±10.

    Args:
        masks: 0..1 (the output of `explanation_maps`).
        target_area: wanted means, 0..1, e.g. the `area` of another method.
        tolerance: difference of the means up to which the area counts as reached.

    Raises:
        ValueError: masks or areas outside 0..1.
    """
    for name, value in (("masks", masks), ("target_area", target_area)):
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name}: values outside 0..1; scale maps with explanation_maps first")
    low = torch.full_like(target_area, -LOG_EXPONENT_LIMIT)
    high = -low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_wide = _power(masks, middle).mean(dim=(2, 3)) > target_area
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    log_exponent = (low + high) / 2
    matched = _power(masks, log_exponent)
    reached = (matched.mean(dim=(2, 3)) - target_area).abs() <= tolerance
    return AreaMatched(matched, log_exponent.exp(), reached)


def whole_image(masks: Float[Tensor, "n m h w"]) -> Float[Tensor, "n 1 h w"]:
    """The map of ones: explains nothing, yet has an Average Drop of 0."""
    return torch.ones_like(masks[:, :1])


def _power(masks: Float[Tensor, "n m h w"], log_exponent: Float[Tensor, "n m"]) -> Float[Tensor, "n m h w"]:
    return masks ** log_exponent.exp()[..., None, None]
