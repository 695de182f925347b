"""From files to an `ImageSet`: which images, read in parallel, damaged ones named, results cached."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8

from repro.data.images import BadImage, Frame, ImageSet, UnreadableImageError
from repro.data.registry import Fit, OnBadImage
from repro.files import content_hash, write_json
from repro.project import UserError

# Decoded images on disk: read JPEG once, then map plain bytes. Whole or absent, keyed by what went in.

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


_BLOCK = 64
Value = TypeVar("Value")


@dataclass(frozen=True)
class Sample:
    """One image as stored, with its ground truth in its own pixels (boxes half-open)."""

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Shaped[np.ndarray, "k 4"] | None = None
    mask: Bool[np.ndarray, "h w"] | None = None
    ignore: Bool[np.ndarray, "h w"] | None = None


@dataclass(frozen=True)
class Listing:
    """All images of one split, not yet read.

    Attributes:
        ids: unique names, in the publisher's order.
        labels: class index per image.
        classes: class names in index order.
        read: reads the i-th image; raises `UnreadableImageError`. Called from several threads.
        files: the file behind each image, where there is one; the cache watches size and time of change.
    """

    ids: list[str]
    labels: Int[np.ndarray, " n"]
    classes: list[str]
    read: Callable[[int], Sample]
    files: list[Path] | None = None


class DamagedImageError(UserError):
    """Images could not be read; `images` holds all of them, the message names the first ten."""

    def __init__(self, name: str, images: Sequence[BadImage]) -> None:
        self.images = tuple(images)
        shown = "\n".join(f"  {bad.id}: {bad.reason}" for bad in self.images[:10])
        more = f"\n  … and {len(self.images) - 10} more" if len(self.images) > 10 else ""
        super().__init__(
            f"{len(self.images)} damaged images in {name!r}:\n{shown}{more}\nrepair them (repro data check {name}) "
            f'or leave them out with on_bad_image="skip"; the record then says how many were left out'
        )


class DamagedFileError(UserError):
    """A file that describes or holds many images is truncated or contradicts itself."""


class UnknownSplitError(UserError):
    """A data set has no split of that name, or not on this machine."""


def choose_split(splits: Mapping[str, Value], split: str, name: str) -> Value:
    """What `splits` holds for `split`.

    Raises:
        UnknownSplitError: nothing; the message lists the splits there are.
    """
    if split not in splits:
        raise UnknownSplitError(f"split={split!r} of {name!r}: expected one of {', '.join(splits)}")
    return splits[split]


def class_balanced_draw(labels: Int[np.ndarray, " n"], limit: int, seed: int) -> Int[np.ndarray, " m"]:
    """Indices of `limit` images, as evenly over the classes as their sizes allow, in ascending order.

    Every class is shuffled; the k-th images of all classes form round k, shuffled too; the first `limit` of all
    rounds are taken. So the draw for a smaller limit is contained in that for a larger one (same seed).
    """
    rng = np.random.default_rng(seed)
    rounds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rounds[members] = rng.permutation(len(members))
    order = np.lexsort((rng.permutation(len(labels)), rounds))
    return np.sort(order[:limit])


@dataclass(frozen=True)
class LoadRequest:
    """What `load_dataset` was asked for, the set's own size and fit filled in; see there."""

    split: str
    limit: int | None
    size: int
    seed: int
    on_bad_image: OnBadImage
    fit: Fit
    root: Path


def load_listing(name: str, listing: Listing, request: LoadRequest, cached: bool) -> ImageSet:
    """Read the images that `request` asks for.

    `cached` sets are decoded once into `<root>/.cache` (each selection and size for itself), unless the root is
    read-only.

    Raises:
        DamagedImageError: images cannot be read and `request.on_bad_image` is "stop".
        ValueError: a size below 1, or too small for `fit="pad"`.
    """
    size, fit = request.size, request.fit
    limit = len(listing.ids) if request.limit is None else request.limit
    chosen = class_balanced_draw(listing.labels, limit, request.seed)
    decode = _Decoder(listing, size, fit)
    if cached and listing.files is not None and os.access(request.root, os.W_OK):
        key = key_of(listing.ids, listing.files, chosen, size, fit)
        folder = request.root / ".cache" / f"{name}-{request.split}-{size}-{fit}-{key[:16]}"
        decoded = load_or_fill(folder, len(chosen), size, lambda arrays: decode.fill(chosen, arrays))
    else:
        decoded = fill_in_memory(len(chosen), size, lambda arrays: decode.fill(chosen, arrays))
    if decoded.skipped and request.on_bad_image == "stop":
        raise DamagedImageError(name, decoded.skipped)
    return _to_image_set(name, request.split, listing, chosen, decoded)


@dataclass(frozen=True)
class _Decoder:
    """Reads images in blocks on several threads (decoding and resampling release the interpreter's lock)."""

    listing: Listing
    size: int
    fit: Fit

    def fill(self, chosen: Int[np.ndarray, " m"], arrays: Arrays) -> Filled:
        """Read the chosen images in order into `arrays`; unreadable ones leave no gap."""
        blocks = [chosen[start : start + _BLOCK].tolist() for start in range(0, len(chosen), _BLOCK)]
        kept: list[int] = []
        boxes: list[list[list[int]]] = []
        skipped: list[BadImage] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for block, samples in zip(blocks, pool.map(self._read_block, blocks), strict=True):
                for index, sample in zip(block, samples, strict=True):
                    if isinstance(sample, BadImage):
                        skipped.append(sample)
                        continue
                    arrays.store(len(kept), sample.image, sample.mask, sample.ignore)
                    kept.append(index)
                    if sample.boxes is not None:
                        boxes.append(sample.boxes.tolist())
        return Filled(kept, boxes or None, skipped)

    def _read_block(self, block: Iterable[int]) -> list[Sample | BadImage]:
        return [self._read(index) for index in block]

    def _read(self, index: int) -> Sample | BadImage:
        try:
            sample = self.listing.read(index)
        except UnreadableImageError as error:
            return BadImage(self.listing.ids[index], str(error))
        height, width = sample.image.shape[:2]
        frame = Frame(width, height, self.size, self.fit)
        return Sample(
            image=frame.place(sample.image, smooth=True),
            boxes=None if sample.boxes is None else frame.place_boxes(sample.boxes),
            mask=None if sample.mask is None else frame.place_mask(sample.mask),
            ignore=None if sample.ignore is None else frame.place_mask(sample.ignore),
        )


def _to_image_set(name: str, split: str, listing: Listing, chosen: Int[np.ndarray, " m"], decoded: Decoded) -> ImageSet:
    kept = decoded.kept
    boxes = decoded.boxes
    return ImageSet(
        name=name,
        split=split,
        images=torch.from_numpy(decoded.images),
        labels=torch.from_numpy(listing.labels[kept].astype(np.int64)),
        classes=listing.classes,
        ids=[listing.ids[index] for index in kept],
        boxes=None if boxes is None else [torch.tensor(b, dtype=torch.int64).reshape(-1, 4) for b in boxes],
        masks=None if decoded.masks is None else torch.from_numpy(decoded.masks),
        ignore=None if decoded.ignore is None else torch.from_numpy(decoded.ignore),
        skipped=tuple(decoded.skipped),
    )
