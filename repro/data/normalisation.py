"""Channel-wise normalisation between stored pixels (0..255) and what a network sees."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """`(pixel / 255 − mean) / std`, per RGB channel; `mean` and `std` are on the 0..1 scale.

    A value of zero in a normalised image is therefore the mean colour, not black (see `black`).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Reject anything but three means in 0..1 and three positive deviations, with a `ValueError`."""
        if len(self.mean) != 3 or not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(
                f"mean: {self.mean} is not three numbers in 0..1; give them on the 0..1 scale of pixel/255"
            )
        if len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(f"std: {self.std} is not three positive numbers; give them on the 0..1 scale of pixel/255")

    def apply(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Float32 network input of images with pixels 0..255.

        Raises:
            ValueError: the images are not uint8 (a float image may already be normalised).
        """
        if images.dtype != torch.uint8:
            raise ValueError(
                f"images: dtype {images.dtype}; expected uint8 pixels 0..255, not an already scaled tensor"
            )
        return (images.float() / 255 - _column(self.mean, images.device)) / _column(self.std, images.device)

    def invert(self, inputs: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
        """Pixels 0..255 of normalised inputs, rounded and clipped; exact for anything `apply` made."""
        unit = inputs.float() * _column(self.std, inputs.device) + _column(self.mean, inputs.device)
        return (unit * 255).round().clamp(0, 255).to(torch.uint8)

    def black(self, device: torch.device | None = None) -> Float[Tensor, "1 3 1 1"]:
        """The normalised value of a black pixel, `−mean / std`."""
        return -_column(self.mean, device) / _column(self.std, device)


def _column(values: tuple[float, float, float], device: torch.device | None) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""torchvision's ImageNet statistics (ScoreCAM++, appendix C)."""

HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Pixels to −1..1; for networks trained here from scratch."""
