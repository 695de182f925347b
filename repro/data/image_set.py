"""`ImageSet`: images with labels, boxes and masks, the one shape in which all data reaches the rest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


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
