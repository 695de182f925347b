"""Reader of the WSOL benchmark's metadata (Choe et al., "Evaluating weakly supervised object localization methods
right"): image ids, class labels, sizes, boxes or masks of CUB, ILSVRC and OpenImages.

Text files without header, comma-separated, id (= image path) first: `image_ids.txt`, `class_labels.txt` (0-based),
`image_sizes.txt` (width, height; absent for OpenImages) and `localization.txt` (one box or one mask per line).
The benchmark's `val` of CUB is CUBV2, its `val` of ILSVRC is ImageNetV2; `test` is CUB's
official test set and ILSVRC's official validation set.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from repro.project import UserError

# Parents of classes, for methods that learn several levels of a hierarchy.

_GARMENTS = {
    "T-shirt/top": "top",
    "Pullover": "top",
    "Coat": "top",
    "Shirt": "top",
    "Trouser": "trousers",
    "Dress": "dress",
    "Sandal": "shoe",
    "Sneaker": "shoe",
    "Ankle boot": "shoe",
    "Bag": "bag",
}
_CUB = re.compile(r"\d{3}\.(?:.*_)?([A-Za-z]+)")


def parent_levels(classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Per level the parent of every class, finest level first; empty where no hierarchy is known.

    Garments (Fashion-MNIST and scenes made of it) have kinds; birds of CUB have the last word of their name, a group of
    related species (Albatross, Sparrow). The embedded scenes have none: all their objects share one body.
    """
    birds = [_CUB.fullmatch(name) for name in classes]
    if all(name in _GARMENTS for name in classes):
        parents = [_GARMENTS[name] for name in classes]
    elif all(birds):
        parents = [found[1] for found in birds if found]
    else:
        return ()
    order = list(dict.fromkeys(parents))
    # One parent for all, or one for each, teaches nothing that the classes themselves do not.
    return (tuple(order.index(parent) for parent in parents),) if 1 < len(order) < len(classes) else ()


# CUB's corners are x + width, y + height, hence exclusive; ILSVRC's boxes come from annotations whose largest
# corner is width - 1 (measured on all 80,477 boxes), hence inclusive.
_INCLUSIVE: dict[str, bool] = {"CUB": False, "ILSVRC": True}


class MetadataError(UserError):
    """A metadata file is missing or a line of it cannot be understood."""


@dataclass(frozen=True)
class MaskFiles:
    """Mask images of one OpenImages image: instances to unite, and the area to ignore."""

    masks: tuple[str, ...]
    ignore: str | None


@dataclass(frozen=True)
class WsolMetadata:
    """Metadata of one split, aligned by position with `ids`.

    Attributes:
        ids: image paths below the image folder.
        labels: 0-based class indices.
        sizes: width and height in pixels, or None (OpenImages).
        boxes: per image `(k, 4)` x0, y0, x1, y1 exactly as the file has them, in pixels of the original image
            (empty for splits without boxes).
        inclusive: whether x1, y1 are the last pixel (ILSVRC) or the one after it (CUB).
        masks: mask file names (OpenImages only).
    """

    ids: list[str]
    labels: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, "n 2"] | None
    boxes: list[Int[np.ndarray, "_ 4"]]
    inclusive: bool
    masks: list[MaskFiles] | None

    def half_open_boxes(self, index: int) -> Int[np.ndarray, "k 4"]:
        """Boxes of one image in original pixels with exclusive right and bottom, as `ImageSet` has them."""
        return self.boxes[index] + (np.array([0, 0, 1, 1]) if self.inclusive else 0)

    def benchmark_boxes(self, size: int = 224) -> list[Int[np.ndarray, "_ 4"]]:
        """Boxes as the benchmark's evaluator uses them on squashed `size` x `size` maps: `int(x * size / width)`.

        The benchmark treats every corner as inclusive, also CUB's. Only for comparing with its numbers.

        Raises:
            ValueError: the split has no sizes.
        """
        if self.sizes is None:
            raise ValueError("sizes are needed to scale boxes; OpenImages has masks instead")
        return [
            (boxes * size / np.tile(wh, 2)).astype(np.int64) for boxes, wh in zip(self.boxes, self.sizes, strict=True)
        ]


def read_wsol_metadata(folder: Path) -> WsolMetadata:
    """Read the split in `folder`, e.g. `…/metadata/CUB/test`; the parent's name tells the data set.

    Raises:
        MetadataError: a file is missing, a line is malformed, or files disagree about the images.
    """
    name = folder.parent.name
    if name not in ("CUB", "ILSVRC", "OpenImages"):
        raise MetadataError(f"{folder}: expected a split folder below CUB, ILSVRC or OpenImages")
    ids = [row[0] for row in _rows(folder / "image_ids.txt", 1)]
    position = {image: index for index, image in enumerate(ids)}
    labels = _per_image(folder / "class_labels.txt", position, 1)[:, 0]
    sizes = boxes = masks = None
    if name == "OpenImages":
        masks = _read_masks(folder / "localization.txt", position) if "train" not in folder.name else None
    else:
        sizes = _per_image(folder / "image_sizes.txt", position, 2)
        boxes = _read_boxes(folder / "localization.txt", position)
    empty = np.zeros((0, 4), np.int64)
    return WsolMetadata(ids, labels, sizes, boxes or [empty] * len(ids), _INCLUSIVE.get(name, False), masks)


def _rows(path: Path, *widths: int) -> list[list[str]]:
    """Fields of all lines; `widths` are the allowed numbers of fields."""
    if not path.is_file():
        raise MetadataError(f"{path} is missing: repro data prepare wsol_metadata")
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, 1):
        if len(row) not in widths:
            raise MetadataError(f"{path}:{number}: {len(row)} fields, expected {' or '.join(map(str, widths))}")
    return rows


def _numbers(rows: list[list[str]], path: Path) -> Int[np.ndarray, "n k"]:
    try:
        return np.array([row[1:] for row in rows], dtype=np.float64).astype(np.int64)
    except ValueError as error:
        raise MetadataError(f"{path}: {error}") from error


def _positions(rows: list[list[str]], position: dict[str, int], path: Path) -> Int[np.ndarray, " n"]:
    try:
        return np.array([position[row[0]] for row in rows], dtype=np.int64)
    except KeyError as error:
        raise MetadataError(f"{path}: image {error} is not in image_ids.txt") from error


def _per_image(path: Path, position: dict[str, int], width: int) -> Int[np.ndarray, "n k"]:
    """Exactly one line per image, in any order."""
    rows = _rows(path, width + 1)
    where = _positions(rows, position, path)
    if len(np.unique(where)) != len(position):
        raise MetadataError(f"{path}: {len(np.unique(where))} images, image_ids.txt has {len(position)}")
    values = np.empty((len(position), width), np.int64)
    values[where] = _numbers(rows, path)
    return values


def _read_boxes(path: Path, position: dict[str, int]) -> list[Int[np.ndarray, "_ 4"]]:
    rows = _rows(path, 5)
    where = _positions(rows, position, path)
    order = np.argsort(where, kind="stable")
    values = _numbers(rows, path).reshape(-1, 4)[order]
    if (values[:, 2:] < values[:, :2]).any():
        raise MetadataError(f"{path}: a box ends before it begins")
    ends = np.cumsum(np.bincount(where, minlength=len(position)))
    return np.split(values, ends[:-1])


def _read_masks(path: Path, position: dict[str, int]) -> list[MaskFiles]:
    """`image, mask, ignore` per instance; the ignore file stands on the image's first line only."""
    found: list[list[str]] = [[] for _ in position]
    ignore: list[str | None] = [None] * len(position)
    rows = _rows(path, 3)
    for row, index in zip(rows, _positions(rows, position, path).tolist(), strict=True):
        found[index].append(row[1])
        ignore[index] = row[2] or ignore[index]
    return [MaskFiles(tuple(masks), area) for masks, area in zip(found, ignore, strict=True)]


def image_scale(actual: tuple[int, int], original: Int[np.ndarray, "2"] | None) -> Float[np.ndarray, "4"]:
    """Factors from boxes in original pixels to boxes of an image that was stored at another size.

    Args:
        actual: width and height of the image at hand.
        original: width and height the boxes refer to; None means the image is the original.
    """
    if original is None:
        return np.ones(4)
    return np.tile(np.array(actual) / np.asarray(original), 2)
