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
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from repro.data.listing import DamagedFileError

# Text tables: every line is understood or refused with its number.

_WHOLE = re.compile(r"-?[0-9]{1,9}")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        DamagedFileError: it is not UTF-8, or holds a NUL.
        FileNotFoundError: no such file.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path}: not UTF-8 text (byte {error.start}); fetch it again") from error
    if "\0" in text:
        raise DamagedFileError(f"{path}: not text (byte {content.index(0)} is NUL); fetch it again")
    return text.splitlines()


def read_rows(path: Path, width: int, separator: str | None = ",") -> list[list[str]]:
    """Fields of all lines, `width` of them in each.

    Raises:
        DamagedFileError: a line has more or fewer.
    """
    rows = [line.split(separator) for line in read_lines(path)]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DamagedFileError(f"{path}:{number}: {len(row)} fields, expected {width}")
    return rows


def whole_numbers(rows: Sequence[Sequence[str]], path: Path) -> Int[np.ndarray, "n k"]:
    """The fields as integers.

    Raises:
        DamagedFileError: a field is empty, not finite, has a fraction, or more than nine digits.
    """
    for number, row in enumerate(rows, 1):
        for text in row:
            if not _WHOLE.fullmatch(text):
                raise DamagedFileError(f"{path}:{number}: {text[:40]!r} is no whole number")
    return np.array(rows, np.str_).astype(np.int64)


def refuse_first(bad: Bool[np.ndarray, "n *k"], path: Path, what: str) -> None:
    """Stop with the file's first line that has a mark.

    Raises:
        DamagedFileError: there is one.
    """
    if bad.any():
        raise DamagedFileError(f"{path}:{int(np.argwhere(bad)[0, 0]) + 1}: {what}")


# CUB's corners are x + width, y + height, hence exclusive; ILSVRC's boxes come from annotations whose largest
# corner is width - 1 (measured on all 80,477 boxes), hence inclusive.
_INCLUSIVE = {"CUB": False, "ILSVRC": True}


class MaskFiles(NamedTuple):
    """Mask images of one OpenImages image: instances to unite, and the area to ignore."""

    masks: list[str]
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
        files: what was read.
    """

    ids: list[str]
    labels: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, "n 2"] | None
    boxes: list[Int[np.ndarray, "_ 4"]]
    inclusive: bool
    masks: list[MaskFiles] | None
    files: tuple[Path, ...]

    def half_open_boxes(self, index: int) -> Int[np.ndarray, "k 4"]:
        """Boxes of one image in original pixels with exclusive right and bottom, as `ImageSet` has them."""
        return self.boxes[index] + (np.array([0, 0, 1, 1]) if self.inclusive else 0)


def read_wsol_metadata(folder: Path) -> WsolMetadata:
    """Read the split in `folder`, e.g. `…/metadata/CUB/test`; the parent's name tells the data set.

    Raises:
        DamagedFileError: a file is missing, a line is malformed or impossible (with its number), or files disagree.
    """
    name = folder.parent.name
    if name not in ("CUB", "ILSVRC", "OpenImages"):
        raise DamagedFileError(f"{folder}: expected a split folder below CUB, ILSVRC or OpenImages")
    has_boxes, has_masks = name in _INCLUSIVE, name == "OpenImages" and "train" not in folder.name
    wanted = ["image_ids", "class_labels", *["image_sizes"] * has_boxes, *["localization"] * (has_boxes or has_masks)]
    files = {stem: folder / f"{stem}.txt" for stem in wanted}
    for path in files.values():
        if not path.is_file():
            raise DamagedFileError(f"{path} is missing: repro data prepare wsol_metadata")
    ids = [row[0] for row in read_rows(files["image_ids"], 1)]
    position: dict[str, int] = {}
    for number, image in enumerate(ids, 1):
        if image in position:
            raise DamagedFileError(f"{files['image_ids']}:{number}: {image!r} is listed twice")
        position[image] = number - 1
    labels = _per_image(files["class_labels"], position, 1, least=0)[:, 0]
    sizes = _per_image(files["image_sizes"], position, 2, least=1) if has_boxes else None
    boxes = [np.zeros((0, 4), np.int64)] * len(ids)
    if sizes is not None:
        boxes = _read_boxes(files["localization"], position, sizes, _INCLUSIVE[name])
    masks = _read_masks(files["localization"], position) if has_masks else None
    return WsolMetadata(ids, labels, sizes, boxes, _INCLUSIVE.get(name, False), masks, tuple(files.values()))


def _positions(rows: list[list[str]], position: dict[str, int], path: Path) -> Int[np.ndarray, " n"]:
    """Where the images of the rows stand in `image_ids.txt`; every image must have at least one row."""
    found = np.array([position.get(row[0], -1) for row in rows], dtype=np.int64)
    if (found < 0).any():
        name = rows[int(np.argmax(found < 0))][0]
        refuse_first(found < 0, path, f"image {name[:200]!r} is not in image_ids.txt")
    if len(np.unique(found)) != len(position):
        raise DamagedFileError(f"{path}: {len(np.unique(found))} images, image_ids.txt has {len(position)}")
    return found


def _per_image(path: Path, position: dict[str, int], width: int, least: int) -> Int[np.ndarray, "n k"]:
    """Exactly one line per image, in any order; no value below `least`."""
    rows = read_rows(path, width + 1)
    values = whole_numbers([row[1:] for row in rows], path).reshape(-1, width)
    refuse_first(values < least, path, f"a value below {least}")
    where = _positions(rows, position, path)
    repeated = np.ones(len(where), bool)
    repeated[np.unique(where, return_index=True)[1]] = False
    refuse_first(repeated, path, "a second line of the same image")
    ordered = np.empty_like(values)
    ordered[where] = values
    return ordered


def _read_boxes(
    path: Path, position: dict[str, int], sizes: Int[np.ndarray, "n 2"], inclusive: bool
) -> list[Int[np.ndarray, "_ 4"]]:
    rows = read_rows(path, 5)
    boxes = whole_numbers([row[1:] for row in rows], path).reshape(-1, 4)
    where = _positions(rows, position, path)
    begin, end = boxes[:, :2], boxes[:, 2:] + int(inclusive)
    refuse_first(end <= begin, path, "a box without area")
    refuse_first((begin < 0) | (end > sizes[where]), path, "a box that leaves its image")
    ends = np.cumsum(np.bincount(where, minlength=len(position)))
    return np.split(boxes[np.argsort(where, kind="stable")], ends[:-1])


def _read_masks(path: Path, position: dict[str, int]) -> list[MaskFiles]:
    """`image, mask, ignore` per instance; the ignore file stands on the image's first line only."""
    rows = read_rows(path, 3)
    refuse_first(np.array([not row[1] for row in rows], bool), path, "a mask without a name")
    found = [MaskFiles([], None) for _ in position]
    for (_, mask, ignore), index in zip(rows, _positions(rows, position, path).tolist(), strict=True):
        found[index] = MaskFiles([*found[index].masks, mask], ignore or found[index].ignore)
    return found
