"""Batches as a function of (seed, step): order, crops and noise are the same after any interruption and on any number
of devices.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from repro.data.images import IMAGENET, ImageSet, Normalisation
from repro.losses.attack import Target
from repro.training.draws import cut_out, generator, order_of_epoch, places, seed_of


class TrainingSettings(BaseModel):
    """Optimiser, schedule, batches and augmentation of a CAM training: what it needs beside its method.

    EGA §4.1 says only "resized to 256, randomly cropped to 224, fine-tuned"; the other defaults are DANet's for CUB,
    whose head and protocol text EGA shares (docs/papers/ega.md §3). Readings: `ega.optimiser.*`.
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


@dataclass(frozen=True)
class Share:
    """The rows of a batch that belong to this process: neighbours, as equal in number as can be."""

    batch_size: int
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty share, with a `ValueError`."""
        if self.batch_size < self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} leaves some of {self.processes} devices without an image; "
                "raise batch_size or use fewer devices"
            )

    @property
    def rows(self) -> slice:
        """Of this process."""
        return self._rows(self.rank)

    @property
    def weight(self) -> float:
        """Factor for a mean over this share, so that the mean over processes is that over the batch."""
        return len(range(*self.rows.indices(self.batch_size))) * self.processes / self.batch_size

    def whole(self, share: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "batch ..."]:
        """The rows of all processes in the order of the batch, without gradient, for what mixes images."""
        if self.processes == 1:
            return share
        sizes = [len(range(*self._rows(rank).indices(self.batch_size))) for rank in range(self.processes)]
        padded = share.new_zeros((max(sizes), *share.shape[1:]))
        padded[: len(share)] = share
        shares = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(shares, padded)
        return torch.cat([values[:size] for values, size in zip(shares, sizes, strict=True)])

    def total(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The sum of a number over all processes, without gradient."""
        if self.processes > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def ratio(self, total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Total over count, both summed over all processes, as a mean over this share (see `weight`)."""
        return total * self.processes / (self.total(count).clamp(min=1) * self.weight)

    def _rows(self, rank: int) -> slice:
        return slice(rank * self.batch_size // self.processes, (rank + 1) * self.batch_size // self.processes)


class StepRandom:
    """Random numbers of one step, drawn for the global batch and cut to the rows of this process."""

    def __init__(self, seed: int, step: int, share: Share, device: torch.device) -> None:
        self.share = share
        self._generator, self._device = generator(seed_of(seed, 1, step), device), device

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Numbers in [0, 1), one array of `shape` for each image of this process."""
        return self.shared(self.share.batch_size, *shape)[self.share.rows]

    def shared(self, *shape: int) -> Float[Tensor, "..."]:
        """Numbers in [0, 1), the same in all processes: for what is drawn once per step."""
        return torch.rand(*shape, generator=self._generator, device=self._device)


class Batches:
    """Batches of an image set on a device, augmented there; the last, incomplete batch of an epoch is left out.

    Images that stay on the host are read one batch ahead by a thread, into pinned memory.
    """

    def __init__(
        self,
        data: ImageSet,
        settings: TrainingSettings,
        seed: int,
        device: torch.device,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Rows of process `rank`, of `processes` shares, of every batch.

        Raises:
            ValueError: there are fewer images than a batch has, or fewer images in a batch than processes.
        """
        if len(data) < settings.batch_size:
            raise ValueError(f"batch_size is {settings.batch_size}, but {data.name!r} has {len(data)} images; lower it")
        self.share = Share(settings.batch_size, rank, processes)
        self._data, self._settings, self._seed, self._device = data, settings, seed, device
        self._images = data.images.to(device) if _fits(data.images, device) else data.images
        self._labels = data.labels.to(device)
        self._epoch = -1
        self._orders: dict[str, Int[Tensor, " n"]] = {}
        self._ahead: tuple[int, Future[Tensor]] | None = None
        self._reader = ThreadPoolExecutor(1) if device.type != self._images.device.type else None

    @property
    def steps_per_epoch(self) -> int:
        """Complete batches in an epoch."""
        return len(self._data) // self._settings.batch_size

    def random(self, step: int) -> StepRandom:
        """The random numbers of a step; every call starts the same sequence again."""
        return StepRandom(self._seed, step, self.share, self._device)

    def indices(self, step: int) -> Int[Tensor, " n"]:
        """Positions in the image set of this process's share of a step."""
        return self._positions(step, torch.device("cpu"))

    def _positions(self, step: int, device: torch.device) -> Int[Tensor, " n"]:
        epoch, within = divmod(step, self.steps_per_epoch)
        if self._epoch != epoch:
            order = order_of_epoch(len(self._data), seed_of(self._seed, 0, epoch))
            self._epoch, self._orders = epoch, {"cpu": order, self._device.type: order.to(self._device)}
        size = self._settings.batch_size
        return self._orders[device.type][within * size : (within + 1) * size][self.share.rows]

    def at(self, step: int, random: StepRandom) -> Batch:
        """The augmented, normalised batch of a step; `random` is read first for crops and flips."""
        labels = self._labels[self._positions(step, self._device)]
        pixels = augment(self._pixels(step), random, self._settings)
        return Batch(normalised(pixels, self._settings), labels, target=labels)

    def _pixels(self, step: int) -> UInt8[Tensor, "n 3 h w"]:
        if self._reader is None:
            return self._images[self._positions(step, self._images.device)]
        ahead = self._ahead if self._ahead and self._ahead[0] == step else None
        images = (ahead[1] if ahead else self._reader.submit(self._read, self.indices(step))).result()
        self._ahead = (step + 1, self._reader.submit(self._read, self.indices(step + 1)))
        return images.to(self._device, non_blocking=True)

    def _read(self, indices: Int[Tensor, " n"]) -> UInt8[Tensor, "n 3 h w"]:
        images = self._images[indices]
        return images.pin_memory() if self._device.type == "cuda" else images


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
    mirrored = (mirror < 0.5) & settings.flip
    return cut_out(images, places(top, rows, height), places(left, columns, width), mirrored)


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


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether a quarter of the free memory of a GPU takes the whole set; on a CPU it stays where it is."""
    if device.type != "cuda":
        return False
    return images.numel() < torch.cuda.mem_get_info(device)[0] // 4
