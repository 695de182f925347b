"""Reading image files of any kind into RGB bytes, and bringing them to one square size."""

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from repro.data.registry import Fit
from repro.project import UserError

# Class names, and mapping labels between sets that order the same classes differently.

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


# Channel-wise normalisation between stored pixels (0..255) and what a network sees.


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


@lru_cache(maxsize=256)
def constant(values: tuple[float, ...], device: torch.device | None) -> Shaped[Tensor, " n"]:
    """Numbers on a device, copied there once: a copy from the host would stop every step until it is done."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _column(values: tuple[float, float, float], device: torch.device | None) -> Float[Tensor, "1 3 1 1"]:
    return constant(values, device).view(1, 3, 1, 1)


IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""torchvision's ImageNet statistics (ScoreCAM++, appendix C)."""

HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Pixels to −1..1; for networks trained here from scratch."""


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
        """Cut out the square of a mask, nearest neighbour; squashed ones as the WSOL benchmark does, by OpenCV's rule.

        That rule takes the pixel at `floor(x * width / size)`, half a pixel beside the middle that others take.
        """
        if self.fit != "squash":
            return self.place(mask.astype(np.uint8), smooth=False) > 0
        import cv2

        return cv2.resize(mask.astype(np.uint8), self.resized, interpolation=cv2.INTER_NEAREST) > 0

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


# `ImageSet`: images with labels, boxes and masks, the one shape in which all data reaches the rest.


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read: its id and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one size, optionally with boxes and masks.

    Boxes are `x0, y0, x1, y1` in pixels of `images`, half-open: the object covers the columns `x0 <= x < x1`
    and the rows `y0 <= y < y1`, so the width is `x1 - x0`. An image may have no box (shape `(0, 4)`).

    Attributes:
        name: registry name of the data set.
        split: name of its split.
        images: RGB, 0..255; may be backed by a file on disk, so do not write to it.
        labels: class index of each image, 0-based into `classes`.
        classes: class names in index order.
        ids: a name per image, unique within data set and split.
        boxes: per image all boxes of the object(s), or None where the set has none.
        box_labels: per image the class of each box, or None where every box has the class of its image.
        masks: True on the object, or None.
        part_masks: True on the class-specific part (part-whole scenes only), or None.
        ignore: True where the ground truth is undecided and metrics must not look, or None.
        skipped: images left out because they could not be read (only with `on_bad_image="skip"`).
    """

    name: str
    split: str
    images: UInt8[Tensor, "n 3 h w"]
    labels: Int[Tensor, " n"]
    classes: list[str]
    ids: list[str]
    boxes: list[Int[Tensor, "_ 4"]] | None = None
    box_labels: list[Int[Tensor, " _"]] | None = None
    masks: Bool[Tensor, "n h w"] | None = None
    part_masks: Bool[Tensor, "n h w"] | None = None
    ignore: Bool[Tensor, "n h w"] | None = None
    skipped: tuple[BadImage, ...] = field(default=())
    stored_manifest: str | None = field(default=None, repr=False)
    """What `manifest` would compute, where it was kept beside the images."""

    def __post_init__(self) -> None:
        """Reject fields of different length and labels that name no class, with a `ValueError`."""
        count = len(self.images)
        for name in ("labels", "ids", "boxes", "box_labels", "masks", "part_masks", "ignore"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name}: {len(value)} entries for {count} images of {self.name!r}")
        if count and not (int(self.labels.min()) >= 0 and int(self.labels.max()) < len(self.classes)):
            raise ValueError(
                f"labels of {self.name!r} run from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but there are {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | Int[Tensor, " k"]) -> "ImageSet":
        """The images at `indices`, in that order, with everything that belongs to them.

        Raises:
            ValueError: an index is negative or not below `len(self)`.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        if len(chosen) and not (int(chosen.min()) >= 0 and int(chosen.max()) < len(self)):
            raise ValueError(f"indices must lie in 0..{len(self) - 1}, got {chosen.tolist()[:10]}")
        rows = chosen.tolist()
        return ImageSet(
            name=self.name,
            split=self.split,
            images=self.images[chosen],
            labels=self.labels[chosen],
            classes=self.classes,
            ids=[self.ids[i] for i in rows],
            boxes=None if self.boxes is None else [self.boxes[i] for i in rows],
            box_labels=None if self.box_labels is None else [self.box_labels[i] for i in rows],
            masks=None if self.masks is None else self.masks[chosen],
            part_masks=None if self.part_masks is None else self.part_masks[chosen],
            ignore=None if self.ignore is None else self.ignore[chosen],
            skipped=self.skipped,
        )

    @cached_property
    def manifest(self) -> str:
        """SHA-256 (hex) over name, split, classes, ids, labels, pixels, boxes and masks: what a record cites."""
        if self.stored_manifest is not None:
            return self.stored_manifest
        digest = hashlib.sha256()
        for text in (self.name, self.split, *self.classes, *self.ids):
            digest.update(text.encode() + b"\0")
        for tensor in (self.labels.to(torch.int64), self.images, self.masks, self.part_masks, self.ignore):
            _update(digest, tensor)
        for per_image in (self.boxes, self.box_labels):
            for tensor in per_image or []:
                _update(digest, tensor.to(torch.int64))
        return digest.hexdigest()


def _update(digest: "hashlib._Hash", tensor: Tensor | None) -> None:
    """Feed shape and content to `digest`, in slices so that a file-backed tensor is never read as a whole."""
    if tensor is None:
        digest.update(b"none\0")
        return
    digest.update(f"{tuple(tensor.shape)}\0".encode())
    for rows in tensor.split(256):
        digest.update(np.ascontiguousarray(rows.numpy()).tobytes())
