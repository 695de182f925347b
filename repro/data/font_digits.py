"""Digits rendered from matplotlib's DejaVu fonts: a source domain for transfer to handwritten digits.

Image `index` of `(split, seed)` does not depend on how many are drawn.
"""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from repro.data.images import DIGITS, ImageSet
from repro.data.scenes import SPLITS

FONT_DIGIT_COUNTS: dict[str, int] = {"train": 4000, "val": 500, "test": 1000}
_CANVAS = 96


def load_font_digits(split: str = "train", limit: int | None = None, size: int = 32, seed: int = 0) -> ImageSet:
    """Render the first `limit` (default 4000 / 500 / 1000) grey digits as RGB, classes in turn.

    Raises:
        ValueError: unknown split, or `limit` or `size` too small.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} of 'font_digits': expected one of {', '.join(SPLITS)}")
    if size < 8 or (limit is not None and limit < 1):
        raise ValueError(f"size={size}, limit={limit}: expected size >= 8 and limit >= 1 or None")
    count = FONT_DIGIT_COUNTS[split] if limit is None else limit
    grey = np.stack([render_digit(split, seed, index, size) for index in range(count)])
    return ImageSet(
        name="font_digits",
        split=split,
        images=torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1),
        labels=torch.arange(count) % len(DIGITS),
        classes=DIGITS,
        ids=[f"{split}-{seed}-{index}" for index in range(count)],
    )


def render_digit(split: str, seed: int, index: int, size: int) -> UInt8[np.ndarray, "s s"]:
    """White digit `index % 10` on black: random font, rotation ±15°, shear, scale, shift, blur by resampling, noise."""
    rng = np.random.default_rng([10 + SPLITS.index(split), seed, index])
    image = Image.new("L", (_CANVAS, _CANVAS))
    fonts = _fonts()
    font = fonts[rng.integers(len(fonts))]
    centre = (_CANVAS / 2, _CANVAS / 2)
    ImageDraw.Draw(image).text(centre, DIGITS[index % len(DIGITS)], fill=255, font=font, anchor="mm")
    warped = image.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, _affine(rng), Image.Resampling.BILINEAR)
    small = np.asarray(warped.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    noisy = small * rng.uniform(0.7, 1.0) + rng.normal(0, rng.uniform(2, 20), small.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _affine(rng: np.random.Generator) -> tuple[float, ...]:
    """Coefficients of PIL's inverse map (output pixel → input pixel) about the centre."""
    angle, shear = rng.normal(0, math.radians(8)), rng.normal(0, 0.15)
    wide, tall = rng.uniform(0.8, 1.15, 2)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = matrix @ np.array([[1 / wide, shear], [0.0, 1 / tall]])
    middle = np.full(2, _CANVAS / 2)
    shift = middle - matrix @ (middle + rng.uniform(-0.06, 0.06, 2) * _CANVAS)
    return (*matrix[0], shift[0], *matrix[1], shift[1])


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    paths = [path for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.name]
    return [ImageFont.truetype(path, 78) for path in paths]
