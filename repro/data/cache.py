"""Decoded images on disk: read JPEG once, then map plain bytes. Whole or absent, keyed by what went in."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from repro.data.image_set import BadImage
from repro.data.images import Fit
from repro.files import content_hash, write_json

_FORMAT = 1
_INDEX = "index.json"


@dataclass(frozen=True)
class Filled:
    """What a decoder did: listing index and boxes of each stored image, and the images it could not read."""

    kept: list[int]
    boxes: list[list[list[int]]] | None
    skipped: list[BadImage]


@dataclass(frozen=True)
class Decoded:
    """Decoded images in the order of `kept`; arrays may be mapped from disk."""

    kept: list[int]
    boxes: list[list[list[int]]] | None
    skipped: list[BadImage]
    images: UInt8[np.ndarray, "n 3 s s"]
    masks: Bool[np.ndarray, "n s s"] | None
    ignore: Bool[np.ndarray, "n s s"] | None


class Arrays:
    """Destination of decoded images: in memory, or files in `folder`."""

    def __init__(self, count: int, size: int, folder: Path | None) -> None:
        self._count, self._size, self._folder = count, size, folder
        self.images = self._allocate("images", (count, 3, size, size), np.dtype(np.uint8))
        self.masks: np.ndarray | None = None
        self.ignore: np.ndarray | None = None

    def store(
        self,
        row: int,
        image: UInt8[np.ndarray, "s s 3"],
        mask: Bool[np.ndarray, "s s"] | None,
        ignore: Bool[np.ndarray, "s s"] | None,
    ) -> None:
        """Put one image and its masks into `row`; mask arrays appear with the first mask."""
        self.images[row] = image.transpose(2, 0, 1)
        if mask is not None:
            if self.masks is None:
                self.masks = self._allocate_planes("masks")
            self.masks[row] = mask
        if ignore is not None:
            if self.ignore is None:
                self.ignore = self._allocate_planes("ignore")
            self.ignore[row] = ignore

    def _allocate_planes(self, name: str) -> np.ndarray:
        return self._allocate(name, (self._count, self._size, self._size), np.dtype(np.bool_))

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self._folder is None or 0 in shape:
            return np.zeros(shape, dtype)
        path = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A sparse mapping on a full disk kills the process at the first write; this raises OSError instead.
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        return array


Fill = Callable[[Arrays], Filled]


def key_of(ids: Sequence[str], files: Sequence[Path], chosen: Int[np.ndarray, " m"], size: int, fit: Fit) -> str:
    """Hash of ids, size and time of change of the chosen files, and of the geometry."""
    rows = [[ids[index], *_state(files[index])] for index in chosen.tolist()]
    return content_hash([_FORMAT, size, fit, rows])


def fill_in_memory(count: int, size: int, fill: Fill) -> Decoded:
    """Decode into memory."""
    arrays = Arrays(count, size, None)
    filled = fill(arrays)
    rows = len(filled.kept)
    masks = None if arrays.masks is None else arrays.masks[:rows]
    ignore = None if arrays.ignore is None else arrays.ignore[:rows]
    return Decoded(filled.kept, filled.boxes, filled.skipped, arrays.images[:rows], masks, ignore)


def load_or_fill(folder: Path, count: int, size: int, fill: Fill) -> Decoded:
    """Map the cache in `folder`; where it does not exist, decode into a temporary folder and rename that.

    Two processes may do so at once: one rename wins, both use its result.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    if not (folder / _INDEX).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
        try:
            filled = fill(Arrays(count, size, partial))
            bad = [[image.id, image.reason] for image in filled.skipped]
            write_json(partial / _INDEX, {"kept": filled.kept, "boxes": filled.boxes, "skipped": bad})
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _load(folder, size)


def _publish(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / _INDEX).exists():
            raise


def _load(folder: Path, size: int) -> Decoded:
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    skipped = [BadImage(id, reason) for id, reason in index["skipped"]]
    rows = len(index["kept"])
    images = _map(folder / "images.npy", rows)
    return Decoded(
        kept=index["kept"],
        boxes=index["boxes"],
        skipped=skipped,
        images=np.zeros((0, 3, size, size), np.uint8) if images is None else images,
        masks=_map(folder / "masks.npy", rows),
        ignore=_map(folder / "ignore.npy", rows),
    )


def _map(path: Path, rows: int) -> np.ndarray | None:
    """The first `rows` of an array file, copy-on-write so that torch may take it and the file never changes."""
    return np.load(path, mmap_mode="c")[:rows] if path.exists() else None


def _state(path: Path) -> list[int]:
    """Size and time of change; an absent file has its own state, so that its return is noticed."""
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]
