"""Random mirroring and shifting of stored images, a whole batch at once."""

import torch
from jaxtyping import UInt8
from torch import Tensor


def flip_and_shift(
    images: UInt8[Tensor, "n 3 h w"], *, flip: bool, shift: int, generator: torch.Generator
) -> UInt8[Tensor, "n 3 h w"]:
    """Mirror each image with probability 1/2 and move it by up to `shift` pixels each way, border pixels repeated.

    Args:
        images: on the CPU, where `generator` is.
        flip: mirror left and right at random.
        shift: largest distance in pixels, uniform over −shift..shift in x and in y.
        generator: source of all randomness.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool() & flip
    rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
    columns = torch.where(mirrored, columns.flip(1), columns)
    picked = images.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
