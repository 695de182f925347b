"""Centre-Gaussian baseline: how well a map that never saw the image localises (digest: EGA §2)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repro.metrics.box_curves import (
    BOX_RULES,
    SIDE,
    BoxCurves,
    Convention,
    half_open_boxes,
    quantise,
    scale_boxes,
)
from repro.metrics.max_tree import N_COLUMNS

_CHUNK = 2000


def center_gaussian(side: int = SIDE, sigma: float = 56.0) -> Float[Tensor, "s s"]:
    """A Gaussian of standard deviation `sigma` pixels around the centre of a side x side map."""
    if side < 1 or sigma <= 0:
        raise ValueError(f"side is {side} and sigma {sigma}, expected both positive")
    offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(offset**2) / (2 * sigma**2))
    return line[:, None] * line[None, :]


def center_gaussian_curves(
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[np.ndarray],
    *,
    sigma: float = 56.0,
    convention: Convention = "benchmark",
) -> BoxCurves:
    """Curves of the baseline for images known only by size and true boxes.

    `sizes` are (width, height); boxes (k, 4) are in image pixels. A Gaussian's masks are discs, so each level
    has one box, the same for all images and all box rules. Narrow Gaussians lose accuracy to the 256 levels:
    the benchmark's value needs sigma >= 56.
    """
    if len(sizes) != len(boxes):
        raise ValueError(f"{len(sizes)} sizes for {len(boxes)} images with boxes; give one of each per image")
    excess = int(convention == "benchmark")
    truth = [
        half_open_boxes(scale_boxes(box, size, convention=convention), i, excess)
        for i, (box, size) in enumerate(zip(boxes, sizes, strict=True))
    ]
    levels = quantise(center_gaussian(sigma=sigma).numpy()[None])[0]
    predicted = _level_boxes(levels, excess)
    iou = np.zeros((len(truth), N_COLUMNS), dtype=np.float32)
    for start in range(0, len(truth), _CHUNK):
        part = truth[start : start + _CHUNK]
        first = np.cumsum([0, *map(len, part)])[:-1]
        iou[start : start + _CHUNK] = np.maximum.reduceat(_iou(np.concatenate(part), predicted), first)
    rules = torch.from_numpy(iou)[:, None].repeat(1, len(BOX_RULES), 1)
    return BoxCurves(rules, torch.full((len(truth),), int(levels.max()), dtype=torch.int64))


def _level_boxes(levels: np.ndarray, excess: int) -> np.ndarray:
    """Half-open box of `{v > L}` for L = -1 … 255 (257, 4)."""
    side = len(levels)
    boxes = np.zeros((N_COLUMNS, 4))
    for column in range(N_COLUMNS):
        inside = np.flatnonzero((levels >= column).any(axis=0))
        low, high = (inside[0], inside[-1] + 1) if len(inside) else (0, 0)
        far = min(high + excess, side)
        boxes[column] = low, low, far, far
    return boxes


def _iou(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """IoU (k, m) of half-open boxes; zero where both are empty."""
    low = np.maximum(truth[:, None, :2], predicted[None, :, :2])
    high = np.minimum(truth[:, None, 2:], predicted[None, :, 2:])
    inter = np.maximum(high - low, 0).prod(axis=-1)
    areas = [(box[:, 2:] - box[:, :2]).prod(axis=-1) for box in (truth, predicted)]
    union = areas[0][:, None] + areas[1][None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
