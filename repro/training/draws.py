"""Random numbers as a function of (seed, step), and the crop-and-mirror that every augmentation is made of.

A stream is named by the hash that starts its generator: `seed_of` for trainings of CAM networks, `named_seed` for those
of classifiers. A resumed training needs no generator state, since every step starts its own.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def seed_of(*numbers: int) -> int:
    """A seed that differs for every tuple of numbers."""
    entropy = [number % 2**32 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def named_seed(purpose: str, seed: int, index: int) -> int:
    """A seed that differs for every purpose, seed and step or epoch."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed} {index}".encode()).digest()[:7], "big")


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on a device that starts at `seed`."""
    return torch.Generator(device).manual_seed(seed)


def order_of_epoch(count: int, seed: int) -> Int[Tensor, " count"]:
    """A permutation of `count` images."""
    return torch.randperm(count, generator=generator(seed))


def cut_out(
    images: Shaped[Tensor, "n c h w"],
    rows: Int[Tensor, "n height"],
    columns: Int[Tensor, "n width"],
    mirrored: Bool[Tensor, " n"],
) -> Shaped[Tensor, "n c height width"]:
    """The given rows and columns of each image, columns in reverse order where `mirrored`."""
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def places(start: Float[Tensor, " n"], side: int, length: int) -> Int[Tensor, "n side"]:
    """`side` neighbouring positions out of `length`, the first drawn by uniform numbers in [0, 1)."""
    return (start * (length - side + 1)).long()[:, None] + torch.arange(side, device=start.device)
