"""A map laid over its image, for notebooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


def overlay(image: Any, cam: Any, *, opacity: float = 0.55, colours: str = "viridis") -> UInt8[np.ndarray, "h w 3"]:
    """An image with a map over it, in colours that survive colour blindness and grey print.

    Args:
        image: RGB as a tensor (3, h, w) or an array (h, w, 3); 0..255 (integers) or 0..1 (floats), not normalised.
        cam: one map (h, w) or (1, h, w), or smaller (then interpolated); scaled to 0..1 here.
        opacity: of the map, 0..1.
        colours: a colour map of matplotlib; `jet` is the field's habit, but not ordered by brightness.

    Returns:
        Pixels 0..255, e.g. for `matplotlib.pyplot.imshow` or `PIL.Image.fromarray`.

    Raises:
        ValueError: image or map of another shape or range.

    >>> overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.rand(1, 4, 4)).shape
    (8, 8, 3)
    """
    from matplotlib import colormaps

    picture = _picture(image)
    values = torch.as_tensor(cam).detach().float().cpu()
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise ValueError(f"cam: shape {tuple(values.shape)}; expected one map (h, w) or (1, h, w)")
    if not bool(values.isfinite().all()):
        raise ValueError("cam: holds NaN or infinity")
    values = torch.nn.functional.interpolate(values[None, None], picture.shape[:2], mode="bilinear")[0, 0]
    extent = values.max() - values.min()
    scaled = (values - values.min()) / extent if extent > 0 else torch.zeros_like(values)
    heat = colormaps[colours](scaled.numpy())[..., :3]
    return np.round(255 * ((1 - opacity) * picture + opacity * heat)).astype(np.uint8)


def _picture(image: Any) -> np.ndarray:
    """RGB as (h, w, 3), 0..1."""
    pixels = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] == 3 and pixels.shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"image: shape {pixels.shape}; expected one RGB image (3, h, w) or (h, w, 3)")
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / 255
    if not 0 <= pixels.min() <= pixels.max() <= 1:
        raise ValueError(
            f"image: values {pixels.min():.3g}..{pixels.max():.3g}; expected pixels, not normalised inputs"
        )
    return pixels
