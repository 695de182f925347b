"""From files to an `ImageSet`: which images, read in parallel, damaged ones named, results cached."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock
from jaxtyping import Bool, Int, Shaped, UInt8

from repro.data.images import BadImage, Frame, ImageSet, UnreadableImageError
from repro.data.registry import Fit, OnBadImage
from repro.files import canonical_json, content_hash, file_hash, write_text
from repro.project import UserError

Value = TypeVar("Value")


class DamagedFileError(UserError):
    """A file that describes or holds many images is truncated or contradicts itself."""


class UnknownSplitError(UserError):
    """A data set has no split of that name, or not on this machine."""


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


@dataclass(frozen=True)
class Sample:
    """One image as stored, with its boxes (half-open) in its own pixels.

    The object is the union of `masks`, of which each may have a size of its own; where `ignore` is True and no mask
    is, the ground truth is undecided.
    """

    image: UInt8[np.ndarray, "h w 3"]
    boxes: Shaped[np.ndarray, "k 4"] | None = None
    masks: tuple[Bool[np.ndarray, "_ _"], ...] = ()
    ignore: Bool[np.ndarray, "_ _"] | None = None


@dataclass(frozen=True)
class Listing:
    """All images of one split, not yet read.

    Attributes:
        ids: unique names, in the publisher's order.
        labels: class index per image.
        classes: class names in index order.
        read: reads the i-th image; raises `UnreadableImageError`. Called from several threads.
        files: the file behind each image, where there is one; the cache watches size and time of change.
        annotations: files with boxes or masks, watched likewise.
        has_masks: whether the samples have masks.
    """

    ids: list[str]
    labels: Int[np.ndarray, " n"]
    classes: list[str]
    read: Callable[[int], Sample]
    files: list[Path] | None = None
    annotations: Sequence[Path] = ()
    has_masks: bool = False

    def __post_init__(self) -> None:
        """Refuse ids that occur twice and labels that name no class."""
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            span = f"{self.labels.min()} to {self.labels.max()}"
            raise DamagedFileError(f"labels run from {span}, but there are {len(self.classes)} classes")
        if len(set(self.ids)) != len(self.ids):
            twice = next(id for id, count in Counter(self.ids).items() if count > 1)
            raise DamagedFileError(f"image {twice!r} is listed twice; ids must be unique")


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


def load_listing(name: str, listing: Listing, request: LoadRequest, cached: bool) -> ImageSet:
    """Read the images that `request` asks for.

    `cached` sets are decoded once into `<root>/.cache` (each selection and size for itself), unless the root is
    read-only.

    Raises:
        DamagedImageError: images cannot be read and `request.on_bad_image` is "stop".
        ValueError: a size below 1, or too small for `fit="pad"`.
    """
    limit = len(listing.ids) if request.limit is None else request.limit
    chosen = class_balanced_draw(listing.labels, limit, request.seed)

    def decode(allocate: Allocate) -> Decoded:
        return _decode(listing, chosen, request.size, request.fit, allocate)

    def build(decoded: Decoded) -> ImageSet:
        return _to_image_set(name, request.split, listing, decoded)

    if cached and listing.files is not None and os.access(request.root, os.W_OK):
        key = _key(listing, chosen, request.size, request.fit)
        folder = request.root / ".cache" / f"{name}-{request.split}-{request.size}-{request.fit}-{key[:16]}"
        images = _load_or_decode(folder, decode, build)
    else:
        images = build(decode(lambda _, shape, kind: np.zeros(shape, kind)))
    if images.skipped and request.on_bad_image == "stop":
        raise DamagedImageError(name, images.skipped)
    return images


@dataclass(frozen=True)
class Decoded:
    """What became of the chosen images: those that could be read, in order, and those that could not.

    `arrays` (`images`, and `masks` and `ignore` where there are masks) hold a row per kept image and maybe empty ones
    after them; they may be mapped from disk.
    """

    kept: list[int]
    boxes: list[list[list[int]]] | None
    skipped: list[BadImage]
    arrays: dict[str, np.ndarray]


Allocate = Callable[[str, tuple[int, ...], type], np.ndarray]
"""`(name, shape, dtype)` → an array of zeros."""


def _decode(listing: Listing, chosen: Int[np.ndarray, " m"], size: int, fit: Fit, allocate: Allocate) -> Decoded:
    """Read the chosen images on several threads (decoding and resampling release the interpreter's lock).

    Threads write into the rows themselves, so that nothing piles up in memory where the disk is slower than they are.
    """
    arrays = {"images": allocate("images", (len(chosen), 3, size, size), np.uint8)}
    if listing.has_masks:
        arrays |= {name: allocate(name, (len(chosen), size, size), np.bool_) for name in ("masks", "ignore")}

    def store(row: int) -> BadImage | list[list[int]] | None:
        index = int(chosen[row])
        try:
            sample = listing.read(index)
        except UnreadableImageError as error:
            return BadImage(listing.ids[index], str(error))
        return _place(sample, size, fit, {name: array[row] for name, array in arrays.items()})

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(store, range(len(chosen))))
    rows = [row for row, one in enumerate(found) if not isinstance(one, BadImage)]
    for array in arrays.values():
        for row, source in enumerate(rows):
            if row != source:
                array[row] = array[source]
    boxes = [one for one in found if isinstance(one, list)]
    skipped = [one for one in found if isinstance(one, BadImage)]
    return Decoded(chosen[rows].tolist(), boxes or None, skipped, arrays)


def _place(sample: Sample, size: int, fit: Fit, row: dict[str, np.ndarray]) -> list[list[int]] | None:
    """Bring one image and its masks to `size`, into the arrays of `row`; returns its boxes there."""
    height, width = sample.image.shape[:2]
    frame = Frame(width, height, size, fit)
    row["images"][:] = frame.place(sample.image, smooth=True).transpose(2, 0, 1)
    for mask in sample.masks:
        row["masks"][:] |= replace(frame, width=mask.shape[1], height=mask.shape[0]).place_mask(mask)
    if sample.ignore is not None:
        ignore = replace(frame, width=sample.ignore.shape[1], height=sample.ignore.shape[0]).place_mask(sample.ignore)
        row["ignore"][:] = ignore & ~row["masks"]
    return None if sample.boxes is None else frame.place_boxes(sample.boxes).tolist()


def _to_image_set(name: str, split: str, listing: Listing, decoded: Decoded) -> ImageSet:
    kept, boxes = decoded.kept, decoded.boxes
    tensors = {key: torch.from_numpy(array[: len(kept)]) for key, array in decoded.arrays.items()}
    return ImageSet(
        name=name,
        split=split,
        images=tensors["images"],
        labels=torch.from_numpy(listing.labels[kept].astype(np.int64)),
        classes=listing.classes,
        ids=[listing.ids[index] for index in kept],
        boxes=None if boxes is None else [torch.tensor(b, dtype=torch.int64).reshape(-1, 4) for b in boxes],
        masks=tensors.get("masks"),
        ignore=tensors.get("ignore"),
        skipped=tuple(decoded.skipped),
    )


# Decoded images on disk: JPEG is read once, then plain bytes are mapped. A folder is whole or absent, keyed by what
# went in, and holds its arrays, an index and the checksums of both. It is a cache: what is damaged is made anew.

_FORMAT = 2
_INDEX = "index.json"


def _key(listing: Listing, chosen: Int[np.ndarray, " m"], size: int, fit: Fit) -> str:
    """Hash of the chosen ids and labels, of the state of all files behind them, and of the geometry."""
    files = listing.files or []
    rows = [[listing.ids[i], int(listing.labels[i]), *_state(files[i])] for i in chosen.tolist()]
    beside = [_state(path) for path in listing.annotations]
    return content_hash([_FORMAT, size, fit, listing.classes, rows, beside])


def _state(path: Path) -> list[int]:
    """Size and time of change; an absent file has its own state, so that its return is noticed."""
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _load_or_decode(
    folder: Path, decode: Callable[[Allocate], Decoded], build: Callable[[Decoded], ImageSet]
) -> ImageSet:
    """Map the cache in `folder`; where it is absent or damaged, decode into a temporary folder and rename that.

    Of several processes one decodes and the others wait. The set's manifest is kept too: hashing all pixels again in
    every process would cost as much as the check that was just made.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        index = _sound_index(folder)
        if index is None:
            shutil.rmtree(folder, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
            try:
                index = _fill(partial, decode, build)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    decoded = Decoded(
        kept=index["kept"],
        boxes=index["boxes"],
        skipped=[BadImage(id, reason) for id, reason in index["skipped"]],
        # Copy-on-write, so that torch may take them and the files never change.
        arrays={name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in index["sha256"]},
    )
    return replace(build(decoded), stored_manifest=index["manifest"])


def _locked(folder: Path) -> AcquireReturnProxy:
    try:
        return FileLock(folder.with_name(folder.name + ".lock")).acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"{folder.parent} lies on a file system without locks ({error}): put REPRO_DATA on another, or make "
            ".cache a link to one"
        ) from error


def _fill(folder: Path, decode: Callable[[Allocate], Decoded], build: Callable[[Decoded], ImageSet]) -> dict[str, Any]:
    def allocate(name: str, shape: tuple[int, ...], kind: type) -> np.ndarray:
        path = folder / f"{name}.npy"
        if 0 in shape:
            np.save(path, np.zeros(shape, kind))
            return np.zeros(shape, kind)
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(kind), shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A sparse mapping on a full disk kills the process at the first write; this raises OSError instead.
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        return array

    decoded = decode(allocate)
    index = {
        "kept": decoded.kept,
        "boxes": decoded.boxes,
        "skipped": [[image.id, image.reason] for image in decoded.skipped],
        "sha256": {name: file_hash(folder / f"{name}.npy") for name in decoded.arrays},
        "manifest": build(decoded).manifest,
    }
    text = canonical_json(index)
    write_text(folder / _INDEX, hashlib.sha256(text.encode()).hexdigest() + "\n" + text)
    _note_check(folder)
    return index


def _sound_index(folder: Path) -> dict[str, Any] | None:
    """The index of an undamaged cache, else None."""
    try:
        digest, text = (folder / _INDEX).read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    index = json.loads(text)
    checked = folder / "checked"
    if _job() and checked.exists() and checked.read_text() == _job():
        return index
    paths = {folder / f"{name}.npy": expected for name, expected in index["sha256"].items()}
    if not all(path.is_file() and file_hash(path) == expected for path, expected in paths.items()):
        return None
    _note_check(folder)
    return index


def _note_check(folder: Path) -> None:
    """Save the other processes of this job from reading everything again."""
    if job := _job():
        write_text(folder / "checked", job)


def _job() -> str:
    """Names the processes that torchrun started together on this machine; empty for a process of its own."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return "" if run is None else f"{run} {os.environ.get('MASTER_PORT')} {os.getppid()}"
