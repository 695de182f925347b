"""The centre-Gaussian baseline: how well a map that never saw the image localises objects (digest: EGA §2)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from repro.metrics.box_curves import SIDE, BoxCurves, Convention, box_curves, scale_boxes

_CHUNK = 1024


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
    threads: int = 1,
) -> BoxCurves:
    """Curves of the baseline for images known only by size (width, height) and true boxes (k, 4), in image pixels.

    The map is the same for all images, so it is enough to see each level once per image. Narrow Gaussians lose
    accuracy to the 256 levels; the benchmark's value needs sigma >= 56.
    """
    if len(sizes) != len(boxes):
        raise ValueError(f"{len(sizes)} sizes for {len(boxes)} images with boxes; give one of each per image")
    scaled = [scale_boxes(box, size, convention=convention) for box, size in zip(boxes, sizes, strict=True)]
    one = center_gaussian(sigma=sigma)
    parts = [
        box_curves(
            one.expand(len(scaled[start : start + _CHUNK]), -1, -1),
            scaled[start : start + _CHUNK],
            convention=convention,
            threads=threads,
        )
        for start in range(0, len(scaled), _CHUNK)
    ]
    return BoxCurves(torch.cat([p.iou for p in parts]), torch.cat([p.peaks for p in parts]))
