"""Batches as a function of (seed, step): order, crops and noise are the same after any interruption and on any number
of devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from repro.data.images import IMAGENET, ImageSet, Normalisation
from repro.losses.attack import Target

# What every CAM training needs to know, apart from its ingredients.


class TrainingSettings(BaseModel):
    """Optimiser, schedule, batches and augmentation of a CAM training.

    EGA §4.1 says only "resized to 256, randomly cropped to 224, fine-tuned"; the other defaults are DANet's for CUB,
    whose head and protocol text EGA shares (digest §3). Readings: `ega.optimiser.*`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: PositiveFloat = 1e-3
    """Of pretrained weights. DANet 1e-3; the EGA release's README too."""
    head_multiplier: PositiveFloat = 10.0
    """Factor for the new layers. DANet, ACoL and the benchmark: 10."""
    bias_multiplier: PositiveFloat = 2.0
    """Factor for biases, on top of the head's. DANet and ACoL 2, so 20 in the head; the benchmark and the release 1."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """All sources: 0.9."""
    nesterov: bool = True
    """All sources but Zhou et al. 2016."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """All sources, for weights and biases alike."""
    batch_size: PositiveInt = 30
    """Images a step over all devices. DANet 30; the benchmark 32; the release's README 1."""
    epochs: PositiveInt = 100
    """DANet on CUB: 100. The release on OpenImages: 10."""
    decay_epochs: tuple[int, ...] = (80,)
    """Epochs after which the learning rate is multiplied by `decay_factor`. DANet on CUB: 80."""
    decay_factor: PositiveFloat = 0.1
    """All sources: 0.1."""
    resize: PositiveInt | None = 256
    """Side to which images of another size are resized, squashed to a square (EGA §4.1); None leaves them."""
    crop: PositiveInt | None = 224
    """Side of the random crop (EGA §4.1); None takes the whole image."""
    flip: bool = True
    """Mirror half of the images. The release and every baseline."""
    normalisation: Normalisation = IMAGENET
    """Channel statistics the pretrained weights expect."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """`bf16-mixed` runs convolutions in bfloat16 under autocast; weights stay float32."""
    log_every: PositiveInt = 10
    """Steps between two entries of the history; a diverged loss is noticed then."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov to false")
        if any(epoch <= 0 for epoch in self.decay_epochs) or list(self.decay_epochs) != sorted(self.decay_epochs):
            raise ValueError(f"decay_epochs is {self.decay_epochs}; give positive epochs in rising order")
        if self.crop is not None and self.resize is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Several views of the same images (clean, adversarial) stand one after the other in `images`; labels are given once.
    """

    images: Float[Tensor, "m 3 h w"]
    """Normalised; m = number of views × number of labels."""
    labels: Int[Tensor, " n"]
    """True classes."""
    target: Target
    """What the cross-entropy compares with: `labels`, or class probabilities where a method mixes labels."""
    views: tuple[str, ...] = ("clean",)
    """Names of the views, in the order of `images`."""

    def by_view(self, values: Float[Tensor, "m ..."]) -> dict[str, Float[Tensor, "n ..."]]:
        """Split network outputs into the views."""
        return dict(zip(self.views, values.chunk(len(self.views)), strict=True))


class StepRandom:
    """Random numbers of one step, drawn for the global batch and cut to the rows of this process."""

    def __init__(self, seed: int, step: int, batch_size: int, rows: slice, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(_mix(seed, 1, step))
        self._batch_size, self._rows, self._device = batch_size, rows, device

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Numbers in [0, 1), one array of `shape` for each image of this process."""
        drawn = torch.rand(self._batch_size, *shape, generator=self._generator, device=self._device)
        return drawn[self._rows]

    def shared(self, *shape: int) -> Float[Tensor, "..."]:
        """Numbers in [0, 1), the same in all processes: for what is drawn once per step."""
        return torch.rand(*shape, generator=self._generator, device=self._device)


class Batches:
    """Batches of an image set on a device, augmented there; the last, incomplete batch of an epoch is left out."""

    def __init__(
        self,
        data: ImageSet,
        settings: TrainingSettings,
        seed: int,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Rows `rank`, of `processes` equal shares, of every batch.

        Raises:
            ValueError: there are fewer images than a batch has, or the batch cannot be shared evenly.
        """
        if len(data) < settings.batch_size:
            raise ValueError(f"batch_size is {settings.batch_size}, but {data.name!r} has {len(data)} images; lower it")
        if settings.batch_size % processes:
            raise ValueError(f"batch_size {settings.batch_size} cannot be shared evenly by {processes} processes")
        self._data, self._settings, self._seed, self._device = data, settings, seed, device
        self._images = data.images.to(device) if _fits(data.images, device) else data.images
        share = settings.batch_size // processes
        self._rows = slice(rank * share, (rank + 1) * share)
        self._order: tuple[int, Int[Tensor, " n"]] = (-1, torch.empty(0, dtype=torch.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return len(self._data) // self._settings.batch_size

    def random(self, step: int) -> StepRandom:
        """The random numbers of a step; every call starts the same sequence again."""
        return StepRandom(self._seed, step, self._settings.batch_size, self._rows, self._device)

    def indices(self, step: int) -> Int[Tensor, " n"]:
        """Positions in the image set of this process's share of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self._seed, 0, epoch))
            self._order = (epoch, torch.randperm(len(self._data), generator=generator))
        size = self._settings.batch_size
        return self._order[1][within * size : (within + 1) * size][self._rows]

    def at(self, step: int, random: StepRandom) -> Batch:
        """The augmented, normalised batch of a step; `random` is read first for crops and flips."""
        indices = self.indices(step)
        images = self._images[indices.to(self._images.device)].to(self._device, non_blocking=True)
        pixels = augment(images, random, self._settings)
        labels = self._data.labels[indices].to(self._device)
        return Batch(normalised(pixels, self._settings), labels, target=labels)


def augment(
    images: UInt8[Tensor, "n 3 h w"], random: StepRandom, settings: TrainingSettings
) -> UInt8[Tensor, "n 3 crop crop"]:
    """Resize to a square, crop at random, mirror half: EGA §4.1.

    Raises:
        ValueError: the crop is larger than the images.
    """
    images = resized(images, settings.resize)
    height, width = images.shape[-2:]
    rows, columns = settings.crop or height, settings.crop or width
    if rows > height or columns > width:
        raise ValueError(f"crop is {settings.crop}, but images are {height}×{width}; lower crop or set resize")
    top, left, mirror = random.uniform(3).unbind(1)
    y = (top * (height - rows + 1)).long()[:, None] + torch.arange(rows, device=images.device)
    x = (left * (width - columns + 1)).long()[:, None] + torch.arange(columns, device=images.device)
    if settings.flip:
        x = torch.where(mirror[:, None] < 0.5, x.flip(1), x)
    image = torch.arange(len(images), device=images.device)
    return images[image[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def resized(images: UInt8[Tensor, "n 3 h w"], side: int | None) -> UInt8[Tensor, "n 3 side side"]:
    """Squash to a square of `side` with antialiasing; None, and images of that size, are left as they are."""
    if side is None or tuple(images.shape[-2:]) == (side, side):
        return images
    scaled = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def normalised(images: UInt8[Tensor, "n 3 h w"], settings: TrainingSettings) -> Float[Tensor, "n 3 h w"]:
    """Network input in the memory layout that the device is fast with."""
    inputs = settings.normalisation.apply(images)
    return inputs.contiguous(memory_format=torch.channels_last if inputs.is_cuda else torch.contiguous_format)


def whole_batch(share: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "batch ..."]:
    """The rows of all processes in the order of the batch, for what mixes images; one process has them already."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return share
    shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, share.contiguous())
    return torch.cat(shares)


def own_share(batch: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "n ..."]:
    """The rows of this process in an array for the whole batch."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return batch
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether a quarter of the free memory of a GPU takes the whole set; on a CPU it stays where it is."""
    if device.type != "cuda":
        return False
    return images.numel() < torch.cuda.mem_get_info(device)[0] // 4


def _mix(*numbers: int) -> int:
    """A seed that differs for every tuple of numbers."""
    entropy: Sequence[int] = [number % 2**32 for number in numbers]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
