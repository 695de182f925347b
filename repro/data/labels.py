"""Class names, and mapping labels between sets that order the same classes differently."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

DIGITS = [str(digit) for digit in range(10)]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
FASHION_MNIST = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
SYNONYMS = {"automobile": "car"}


def label_map(source: Sequence[str], target: Sequence[str]) -> Int[Tensor, " s"]:
    """For each source class the index of the class of that name in `target`, or -1 where it has none.

    Case and the synonym automobile = car are levelled. CIFAR-10 → STL-10 maps nine classes; frog has no partner
    (STL-10's monkey has none in CIFAR-10): transferring a classifier between them without this map compares, e.g.,
    dogs with horses.

    Raises:
        ValueError: a class name occurs twice in `target`.
    """
    positions = {_key(name): index for index, name in enumerate(target)}
    if len(positions) != len(target):
        raise ValueError(f"target classes must differ, got {list(target)}")
    return torch.tensor([positions.get(_key(name), -1) for name in source], dtype=torch.int64)


def _key(name: str) -> str:
    lowered = name.lower()
    return SYNONYMS.get(lowered, lowered)
