"""What R replicas see: resident data, their imbalanced tasks, and the random draws of every step.

The draws of replica r in cycle c are a pure function of (seed of r, c): they depend neither on how many replicas
are trained together nor on the slot a replica has, and a resumed training needs no generator state.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad

from repro.data.images import IMAGENET, ImageSet
from repro.training.draws import cut_out, generator, places

CriticBatches = Literal["fresh", "window"]
RealClasses = Literal["as_they_are", "balanced"]
InputScale = Literal["symmetric", "imagenet"]


@dataclass(frozen=True)
class Augmentation:
    """Random crop of `size` pixels after zero-padding by `padding`, and random horizontal flip (Appendix A).

    Where nothing is random, the crop is central, or there is none (`central=False`: the whole, unpadded image).
    """

    size: int
    padding: int
    central: bool = True


@dataclass(frozen=True, eq=False)
class ResidentData:
    """A whole data set on the training device; grey or RGB, 0..255.

    Inputs are scaled to [−1, 1] (Appendix A's "zero-mean" is read as that) or by ImageNet's mean and deviation.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    scale: InputScale = "symmetric"

    def to(self, device: torch.device) -> "ResidentData":
        """The same data on `device`."""
        return ResidentData(self.images.to(device), self.labels.to(device), self.scale)

    def inputs(
        self,
        index: Int[Tensor, "*r b"],
        dtype: torch.dtype = torch.float32,
        augmentation: Augmentation | None = None,
        moves: Float[Tensor, "*r b 3"] | None = None,
    ) -> Float[Tensor, "*r b c h w"]:
        """Network inputs of the images at `index`.

        `moves` has per image three uniform numbers in [0, 1) (vertical and horizontal offset, flip); without it nothing
        is random.
        """
        chosen = self.images[index]
        if augmentation is not None:
            chosen = _crop_and_flip(chosen, augmentation, moves)
        if self.scale == "imagenet":
            return IMAGENET.apply(chosen.flatten(0, -4)).to(dtype).unflatten(0, index.shape)
        return chosen.to(dtype) / 127.5 - 1


def _crop_and_flip(images: Tensor, augmentation: Augmentation, moves: Tensor | None) -> Tensor:
    lead, size = images.shape[:-3], augmentation.size
    if moves is None and not augmentation.central:
        return images
    flat = pad(images.flatten(0, -4), (augmentation.padding,) * 4)
    whole = flat.shape[-1]
    if moves is None:
        first = (whole - size) // 2
        return flat[..., first : first + size, first : first + size].unflatten(0, lead)
    top, left, mirrored = moves.flatten(0, -2).unbind(-1)
    return cut_out(flat, places(top, size, whole), places(left, size, whole), mirrored >= 0.5).unflatten(0, lead)


def resident(data: ImageSet, grey: bool, border: int = 0, scale: InputScale = "symmetric") -> ResidentData:
    """An image set as training takes it; nothing is copied where nothing changes.

    `grey` turns RGB into ITU-R 601 luminance (LeNet-5; SVHN in Appendix A), `border` adds black pixels on every side.
    """
    images = data.images
    if grey:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        # In parts: the float copy of a large set would be twelve times its size.
        parts = [(part.float() * weights).sum(1, keepdim=True).round().byte() for part in images.split(10_000)]
        images = torch.cat(parts)
    return ResidentData(pad(images, (border,) * 4) if border else images, data.labels, scale)


@dataclass(frozen=True, eq=False)
class ReplicaTasks:
    """R imbalanced tasks on one data set.

    Attributes:
        train: all training images, resident on the device.
        test: the untouched test set, resident too.
        classes: number of classes.
        subsets: per replica the images it is trained on.
        held_out: per replica training images kept for choosing a model; may be empty.
        seeds: per replica the seed of its initialisation and draws.
        augmentation: of training images, or None (LeNet-5).
    """

    train: ResidentData
    test: ResidentData
    classes: int
    subsets: Sequence[Int[Tensor, " _"]]
    held_out: Sequence[Int[Tensor, " _"]]
    seeds: Sequence[int]
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if not len(self.subsets) == len(self.held_out) == len(self.seeds) > 0:
            raise ValueError(
                f"got {len(self.subsets)} subsets, {len(self.held_out)} held-out parts and {len(self.seeds)} seeds; "
                "give one of each per replica, and at least one replica"
            )

    @property
    def device(self) -> torch.device:
        """Where training happens: the labels' device."""
        return self.train.labels.device

    @property
    def replicas(self) -> int:
        """R."""
        return len(self.seeds)

    def class_counts(self) -> Int[Tensor, "r k"]:
        """Training images per replica and class."""
        return torch.stack(
            [torch.bincount(self.train.labels[subset], minlength=self.classes) for subset in self.subsets]
        )


@dataclass(frozen=True, eq=False)
class ReplicaBatch:
    """What one update sees; every tensor has shape (R, batch, …)."""

    images: Float[Tensor, "r b c h w"]
    labels: Int[Tensor, "r b"]
    noise: Float[Tensor, "r b z"]
    generated_labels: Int[Tensor, "r b"]
    mixing: Float[Tensor, "r b"]


class CycleDraws:
    """All random numbers of one cycle of steps (`slots` batches in each), in tensors that are refilled in place.

    Real images are drawn with replacement from the replica's own subset (`balanced`: a class first, then one of its
    images); z is uniform on [−1, 1], ŷ uniform over the classes, ε uniform on [0, 1]. `window` is the released code's
    choice of the critic's batches: one new batch per step, the last slot and the critic's last round see it, the rounds
    before see those of the steps before.
    """

    def __init__(
        self,
        tasks: ReplicaTasks,
        *,
        steps: int,
        slots: int,
        batch: int,
        noise: int = 0,
        critic_batches: CriticBatches = "fresh",
        real_classes: RealClasses = "as_they_are",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.data, self.augmentation, self.classes = tasks.train, tasks.augmentation, tasks.classes
        self.seeds = tuple(tasks.seeds)
        self.critic_batches: CriticBatches = critic_batches
        self.real_classes: RealClasses = real_classes
        self.dtype = dtype
        self.device = tasks.device
        labels = self.data.labels
        self._subsets = [subset.to(self.device) for subset in tasks.subsets]
        self._subsets = [subset[labels[subset].argsort(stable=True)] for subset in self._subsets]
        self._class_ranges = [_class_ranges(labels[subset]) for subset in self._subsets]
        shape = (len(self.seeds), steps, slots, batch)
        self._index = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self._generated_labels = torch.zeros_like(self._index)
        self._noise = torch.zeros((*shape, noise), dtype=dtype, device=self.device)
        self._mixing = torch.zeros(shape, dtype=dtype, device=self.device)
        self._moves = torch.zeros((*shape, 3 if self.augmentation else 0), device=self.device)

    def load(self, cycle: int) -> None:
        """Fill in the draws of one cycle."""
        shape = self._index.shape[1:]
        for r, seed in enumerate(self.seeds):
            draw = stream(seed, "generated", cycle, self.device)
            self._index[r] = self._real_index(r, cycle)
            self._noise[r] = _uniform(self._noise.shape[1:], draw) * 2 - 1
            self._generated_labels[r] = (_uniform(shape, draw) * self.classes).long()
            self._mixing[r] = _uniform(shape, draw)
            self._moves[r] = _uniform(self._moves.shape[1:], draw)

    def batch(self, step: int, slot: int) -> ReplicaBatch:
        """The batch of one slot of one step of the loaded cycle."""
        index = self._index[:, step, slot]
        moves = self._moves[:, step, slot] if self.augmentation else None
        return ReplicaBatch(
            self.data.inputs(index, self.dtype, self.augmentation, moves),
            self.data.labels[index],
            self._noise[:, step, slot],
            self._generated_labels[:, step, slot],
            self._mixing[:, step, slot],
        )

    def _real_index(self, replica: int, cycle: int) -> Tensor:
        steps, slots, batch = self._index.shape[1:]
        seed = self.seeds[replica]
        if self.critic_batches == "fresh":
            return self._choose(replica, _uniform((2, steps, slots, batch), stream(seed, "real", cycle, self.device)))
        history = math.ceil((slots - 2) / steps)
        cycles = range(cycle - history, cycle + 1)
        drawn = [_uniform((2, steps, batch), stream(seed, "real", c, self.device)) for c in cycles]
        step = torch.arange(steps, device=self.device)[:, None] + history * steps
        back = torch.arange(slots - 2, -2, -1, device=self.device).clamp(min=0)
        return self._choose(replica, torch.cat(drawn, dim=1)[:, step - back])

    def _choose(self, replica: int, uniform: Tensor) -> Tensor:
        """Images from pairs of uniform numbers: (unused or class, position)."""
        subset = self._subsets[replica]
        if self.real_classes == "as_they_are":
            return subset[(uniform[1] * len(subset)).long()]
        starts, counts = self._class_ranges[replica]
        label = (uniform[0] * len(starts)).long()
        return subset[starts[label] + (uniform[1] * counts[label]).long()]


def _class_ranges(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length of each class that occurs in labels sorted by class."""
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    return starts[counts > 0], counts[counts > 0]


def stream_seed(seed: int, purpose: str, cycle: int) -> int:
    """Seed of one purpose's random numbers in one cycle of a training."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{cycle}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def stream(seed: int, purpose: str, cycle: int, device: torch.device) -> torch.Generator:
    """Random numbers as a function of seed, purpose and cycle."""
    return generator(stream_seed(seed, purpose, cycle), device)


def _uniform(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=draw, device=draw.device)


def one_hot(labels: Int[Tensor, "*b"], classes: int, dtype: torch.dtype) -> Float[Tensor, "*b k"]:
    """One-hot labels without the host synchronisation of `torch.nn.functional.one_hot`."""
    return (labels[..., None] == torch.arange(classes, device=labels.device)).to(dtype)
