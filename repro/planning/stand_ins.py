"""Image sets of the right size and shape without their pixels, so that a plan needs no data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from repro.data.images import ImageSet
from repro.data.load import MissingDataError, load_dataset
from repro.data.registry import ENTRIES

CLASSES = {
    "cub": 200,
    "ilsvrc": 1000,
    "imagenet": 1000,
    "imagenet_sample": 900,
    "openimages30k": 100,
    "caltech256": 257,
    "food101": 101,
    "tiny_imagenet": 200,
    "dogs_vs_cats": 2,
    "oxford_pets": 37,
}
"""Classes as published, where the data set is not on this machine; 10 for those not listed."""
SIDES = {
    "mnist": 28,
    "emnist_digits": 28,
    "fashion_mnist": 28,
    "svhn": 32,
    "cifar10": 32,
    "cifar10_jpg": 32,
    "cinic10": 32,
    "stl10": 96,
    "tiny_imagenet": 64,
}
"""Pixels as published; 224 for photographs."""


@dataclass(frozen=True)
class Shape:
    """What a plan must know of a data set."""

    images: int
    classes: int
    side: int
    here: bool
    """Whether classes and side were read from the data itself."""


@cache
def shape_of(dataset: str, split: str, limit: int | None, size: int | None) -> Shape:
    """Number of images, classes and pixels: from the data where they are here, else as published.

    Raises:
        ValueError: the registry knows no size of that split.
    """
    sizes = ENTRIES[dataset].splits
    if split not in sizes:
        raise ValueError(f"the registry knows no size of split '{split}' of {dataset}")
    count = sizes[split] if limit is None else min(limit, sizes[split])
    try:
        one = load_dataset(dataset, split="test", limit=1, size=size)
    except MissingDataError:
        return Shape(count, CLASSES.get(dataset, 10), size or SIDES.get(dataset, 224), here=False)
    return Shape(count, len(one.classes), one.images.shape[-1], here=True)


def stand_in(dataset: str, split: str, limit: int | None, size: int | None) -> ImageSet:
    """An image set of that shape: noise, stored once and repeated, with one box in the middle of every image.

    Raises:
        ValueError: see `shape_of`.
    """
    shape = shape_of(dataset, split, limit, size)
    n, side = shape.images, shape.side
    noise = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    box = torch.tensor([[side // 4, side // 4, 3 * side // 4, 3 * side // 4]])
    return ImageSet(
        name="stand_in",
        split=split,
        images=noise.expand(n, -1, -1, -1),
        labels=torch.arange(n) % shape.classes,
        classes=[f"class {index}" for index in range(shape.classes)],
        ids=["stand_in"] * n,
        boxes=[box] * n,
    )


def note_shape(dataset: str, split: str, limit: int | None, size: int | None) -> str | None:
    """A sentence where the published size had to do."""
    shape = shape_of(dataset, split, limit, size)
    if shape.here:
        return None
    return f"{dataset}/{split} is not here: {shape.images:,} images as published"


def cached_bytes(dataset: str, split: str, limit: int | None, size: int | None) -> int:
    """Bytes of the images as they are kept on disk after the first reading; none for embedded sets."""
    if ENTRIES[dataset].embedded:
        return 0
    shape = shape_of(dataset, split, limit, size)
    return 3 * shape.images * shape.side**2
