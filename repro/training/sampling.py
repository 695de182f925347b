"""Resident data and the random draws of every training step.

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

CriticBatches = Literal["fresh", "window"]
RealClasses = Literal["as_they_are", "balanced"]


@dataclass(frozen=True)
class Augmentation:
    """Random crop of `size` pixels after zero-padding by `padding`, and random horizontal flip (Appendix A)."""

    size: int
    padding: int


@dataclass(frozen=True, eq=False)
class ResidentData:
    """A whole data set on the training device; grey or RGB, 0..255.

    `inputs` scales to [−1, 1] as in Appendix A (its "zero-mean" is read as this fixed scaling).
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def to(self, device: torch.device) -> "ResidentData":
        """A copy on `device`."""
        return ResidentData(self.images.to(device), self.labels.to(device))

    def inputs(
        self,
        index: Int[Tensor, "*r b"],
        dtype: torch.dtype = torch.float32,
        augmentation: Augmentation | None = None,
        moves: Float[Tensor, "*r b 3"] | None = None,
    ) -> Float[Tensor, "*r b c h w"]:
        """Network inputs of the images at `index`.

        Args:
            index: positions in `images`.
            dtype: of the result.
            augmentation: crop and flip; without `moves` the crop is central and nothing is flipped.
            moves: per image three uniform numbers in [0, 1): vertical and horizontal offset, flip.
        """
        chosen = self.images[index]
        if augmentation is not None:
            chosen = _crop_and_flip(chosen, augmentation, moves)
        return chosen.to(dtype) / 127.5 - 1


def _crop_and_flip(images: Tensor, augmentation: Augmentation, moves: Tensor | None) -> Tensor:
    lead, size = images.shape[:-3], augmentation.size
    flat = pad(images.flatten(0, -4), (augmentation.padding,) * 4)
    room = flat.shape[-1] - size
    if moves is None:
        return flat[..., room // 2 : room // 2 + size, room // 2 : room // 2 + size].unflatten(0, lead)
    offsets = (moves[..., :2].flatten(0, -2) * (room + 1)).long()
    line = torch.arange(size, device=images.device)
    columns = torch.where(moves[..., 2].flatten()[:, None] < 0.5, line, line.flip(0)) + offsets[:, 1:]
    rows = line + offsets[:, :1]
    sample = torch.arange(len(flat), device=images.device)[:, None, None]
    # Advanced indices around the channel slice put the channel axis last.
    return flat[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).unflatten(0, lead)


@dataclass(frozen=True, eq=False)
class Batch:
    """What one update sees; every tensor has shape (R, batch, …)."""

    images: Float[Tensor, "r b c h w"]
    labels: Int[Tensor, "r b"]
    noise: Float[Tensor, "r b z"]
    generated_labels: Int[Tensor, "r b"]
    mixing: Float[Tensor, "r b"]


class CycleDraws:
    """All random numbers of one cycle of steps, in tensors that are refilled in place.

    Real images are drawn with replacement from the replica's own subset; z is uniform on [−1, 1], ŷ uniform
    over the classes, ε uniform on [0, 1].

    Args:
        data: the resident training data.
        subsets: per replica the images it may see.
        seeds: per replica the seed of its stream.
        classes: number of classes of ŷ.
        steps: steps per cycle.
        slots: batches per step.
        batch: images per batch.
        noise: length of z; 0 for trainings without a generator.
        augmentation: of real images.
        critic_batches: `fresh` draws every batch anew; `window` is the released code's: one new batch per step, the
            last slot and the critic's last round see it, the rounds before see those of the steps before.
        real_classes: `as_they_are` draws images, `balanced` draws a class first and then one of its images.
        dtype: of images and noise.
    """

    def __init__(
        self,
        data: ResidentData,
        subsets: Sequence[Int[Tensor, " _"]],
        seeds: Sequence[int],
        classes: int,
        *,
        steps: int,
        slots: int,
        batch: int,
        noise: int,
        augmentation: Augmentation | None = None,
        critic_batches: CriticBatches = "fresh",
        real_classes: RealClasses = "as_they_are",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(subsets) != len(seeds):
            raise ValueError(f"got {len(subsets)} subsets and {len(seeds)} seeds; give one of each per replica")
        self.data = data
        self.seeds = tuple(seeds)
        self.classes = classes
        self.augmentation = augmentation
        self.critic_batches: CriticBatches = critic_batches
        self.dtype = dtype
        device = data.labels.device
        self.real_classes: RealClasses = real_classes
        self._subsets = [subset.to(device)[data.labels[subset].argsort(stable=True)] for subset in subsets]
        self._class_ranges = [_class_ranges(data.labels[subset]) for subset in self._subsets]
        shape = (len(seeds), steps, slots, batch)
        self._index = torch.zeros(shape, dtype=torch.int64, device=device)
        self._generated_labels = torch.zeros_like(self._index)
        self._noise = torch.zeros((*shape, noise), dtype=dtype, device=device)
        self._mixing = torch.zeros(shape, dtype=dtype, device=device)
        self._moves = torch.zeros((*shape, 3 if augmentation else 0), device=device)

    def load(self, cycle: int) -> None:
        """Fill in the draws of one cycle."""
        steps, slots, batch = self._index.shape[1:]
        for r, seed in enumerate(self.seeds):
            draw = _generator(seed, "generated", cycle, self._index.device)
            self._index[r] = self._real_index(r, cycle)
            self._noise[r] = _uniform(self._noise.shape[1:], draw) * 2 - 1
            self._generated_labels[r] = (_uniform((steps, slots, batch), draw) * self.classes).long()
            self._mixing[r] = _uniform((steps, slots, batch), draw)
            self._moves[r] = _uniform(self._moves.shape[1:], draw)

    def batch(self, step: int, slot: int) -> Batch:
        """The batch of one slot of one step of the loaded cycle."""
        index = self._index[:, step, slot]
        moves = self._moves[:, step, slot] if self.augmentation else None
        return Batch(
            self.data.inputs(index, self.dtype, self.augmentation, moves),
            self.data.labels[index],
            self._noise[:, step, slot],
            self._generated_labels[:, step, slot],
            self._mixing[:, step, slot],
        )

    def _real_index(self, replica: int, cycle: int) -> Tensor:
        steps, slots, batch = self._index.shape[1:]
        seed, device = self.seeds[replica], self._index.device
        if self.critic_batches == "fresh":
            return self._choose(replica, _uniform((2, steps, slots, batch), _generator(seed, "real", cycle, device)))
        history = math.ceil((slots - 2) / steps)
        stream = torch.cat(
            [
                _uniform((2, steps, batch), _generator(seed, "real", c, device))
                for c in range(cycle - history, cycle + 1)
            ],
            dim=1,
        )
        step = torch.arange(steps, device=device)[:, None] + history * steps
        back = torch.arange(slots - 2, -2, -1, device=device).clamp(min=0)
        return self._choose(replica, stream[:, step - back])

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


def _generator(seed: int, purpose: str, cycle: int, device: torch.device) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{cycle}".encode(), digest_size=4).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)


def one_hot(labels: Int[Tensor, "*b"], classes: int, dtype: torch.dtype) -> Float[Tensor, "*b k"]:
    """One-hot labels without the host synchronisation of `torch.nn.functional.one_hot`."""
    return (labels[..., None] == torch.arange(classes, device=labels.device)).to(dtype)
