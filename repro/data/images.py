"""Reading image files of any kind into RGB bytes, and bringing them to one square size."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8
from PIL import Image, ImageOps

from repro.errors import UserError

Fit = Literal["crop", "squash", "pad"]
"""How an image becomes a square: short side to `size`, then centre crop; both sides to `size` (aspect ratio lost);
or centred on black without resampling."""

_WIDE_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImageError(UserError):
    """A file is absent, empty, truncated or no image; the text says which."""


def read_image(source: Path | bytes, upright: bool = True) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image file to RGB, 8 bits per channel.

    Grey and palette images become RGB, CMYK is converted, 16-bit grey is divided by 257, an alpha channel is
    dropped without blending (as torchvision's folder loader does, so that published numbers stay comparable).

    Args:
        source: a file, or its content.
        upright: turn the image as its EXIF orientation says. Off for sets whose boxes were drawn on the stored
            pixels (CUB, ILSVRC, OpenImages).

    Raises:
        UnreadableImageError: the file is missing, has no bytes, is truncated, or is not an image.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        if not content:
            raise UnreadableImageError("has no bytes")
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            turned = ImageOps.exif_transpose(image) if upright else image
            return np.asarray(_to_rgb(turned))
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError("file is missing") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UnreadableImageError(f"{type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GREY:
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray((grey // 257).astype(np.uint8))
    return image.convert("RGB")


@dataclass(frozen=True)
class Frame:
    """The square that images of `width` x `height` pixels are brought into."""

    width: int
    height: int
    size: int
    fit: Fit

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height after resampling, before cropping or padding."""
        if self.fit == "squash":
            return self.size, self.size
        if self.fit == "pad":
            return self.width, self.height
        short = min(self.width, self.height)
        return self.size * self.width // short, self.size * self.height // short

    @property
    def offset(self) -> tuple[int, int]:
        """Left and top of the square in the resampled image; negative where it is padded."""
        width, height = self.resized
        return round((width - self.size) / 2), round((height - self.size) / 2)

    def place(self, pixels: Shaped[np.ndarray, "h w *c"], smooth: bool) -> Shaped[np.ndarray, "s s *c"]:
        """Resample (bilinear with antialiasing, or nearest neighbour) and cut out the square.

        Raises:
            ValueError: `fit="pad"` and the image is larger than `size`.
        """
        if self.fit == "pad" and max(self.width, self.height) > self.size:
            raise ValueError(f"size={self.size}: fit='pad' needs at least {max(self.width, self.height)}")
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        image = Image.fromarray(pixels)
        if self.resized != image.size:
            way = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
            image = image.resize(self.resized, way)
        left, top = self.offset
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def place_mask(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "s s"]:
        """Cut out the square of a mask, nearest neighbour."""
        return self.place(mask.astype(np.uint8), smooth=False) > 0

    def place_boxes(self, boxes: Shaped[np.ndarray, "k 4"]) -> Int[np.ndarray, "j 4"]:
        """Move half-open boxes along and clip them; boxes that are cropped away are dropped.

        Corners are truncated to whole pixels like the WSOL benchmark does (`int(x * 224 / width)`); a box keeps at
        least one pixel.
        """
        scale = np.array(self.resized * 2) / np.array([self.width, self.height] * 2)
        moved = np.floor(boxes * scale + 1e-9).astype(np.int64) - np.array(self.offset * 2)
        inside = ((moved[:, :2] < self.size) & (moved[:, 2:] > 0)).all(1)
        moved = np.clip(moved[inside], 0, self.size)
        moved[:, :2] = np.minimum(moved[:, :2], self.size - 1)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        return moved
