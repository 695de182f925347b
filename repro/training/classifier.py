"""Training and fine-tuning of the classifiers to be explained (ScoreCAM++, appendix C), through the run store."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from repro.models.classifiers import ArchitectureName, Classifier, architecture_of
from repro.training.draws import cut_out, generator, named_seed, order_of_epoch
from repro.training.run_store import Resumable, Run, RunConfig

LOG_EVERY = 50
"""Steps between two looks at the losses, which wait for the device."""

# Random mirroring and shifting of stored images, a whole batch at once.


def flip_and_shift(
    images: UInt8[Tensor, "n 3 h w"], *, flip: bool, shift: int, generator: torch.Generator
) -> UInt8[Tensor, "n 3 h w"]:
    """Mirror each image with probability 1/2 and move it by up to `shift` pixels each way, border pixels repeated.

    Args:
        images: on the CPU, where `generator` is.
        flip: mirror left and right at random.
        shift: largest distance in pixels, uniform over −shift..shift in x and in y.
        generator: source of all randomness.
    """
    count, _, height, width = images.shape
    offsets = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool() & flip
    rows = (torch.arange(height) + offsets[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + offsets[1]).clamp(0, width - 1)
    return cut_out(images, rows, columns, mirrored[:, 0])


@runtime_checkable
class LabelledImages(Protocol):
    """What a training needs of an `ImageSet`."""

    @property
    def images(self) -> UInt8[Tensor, "n 3 h w"]:
        """RGB, 0..255."""

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Class index of each image."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names in index order."""


class ClassifierSettings(BaseModel):
    """How a classifier is trained; the defaults are the paper's fine-tuning (ScoreCAM++, appendix C)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam in the paper; SGD has a momentum of 0.9. The other constants are torch's."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The paper's 0.0001."""
    weight_decay: float = Field(default=0.0, ge=0)
    """The paper names none."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The paper names none, hence constant; cosine falls to zero over the training, for the short ones."""
    epochs: int = Field(default=100, ge=1)
    """The paper's 100; an image is seen once an epoch, but for a remainder smaller than a batch."""
    batch_size: int = Field(default=64, ge=2)
    """The paper's 64; cut to the number of images where there are fewer."""
    trainable: Literal["all", "head"] = "all"
    """Which weights learn. The paper says that networks "underwent additional training": all. With `head` only the last
    layer does, and batch norm keeps its statistics."""
    flip: bool = False
    """Mirror half of the images; the paper says "no further preprocessing steps"."""
    shift: int = Field(default=0, ge=0)
    """Largest shift in pixels, in both directions, borders repeated; none in the paper."""
    seed: int = Field(default=0, ge=0)
    """Of the fresh weights, the order of the images, the augmentation and dropout; the paper names none."""

    @classmethod
    def for_architecture(cls, architecture: ArchitectureName, *, epochs: int, seed: int) -> "ClassifierSettings":
        """The paper's fine-tuning, or for `small_cnn` and `small_vit`, which it does not have, seconds from scratch."""
        if architecture not in ("small_cnn", "small_vit"):
            return cls(epochs=epochs, seed=seed)
        return cls(learning_rate=3e-3, schedule="cosine", epochs=epochs, batch_size=32, flip=True, shift=4, seed=seed)


class ClassifierRun(RunConfig):
    """Everything that decides the outcome of `train_classifier`; its hash is the key in the run store."""

    kind: ClassVar[str] = "classifier"

    architecture: ArchitectureName
    weights: str
    """Hash of the weights the training starts from, and of the seed of those that are drawn at random."""
    data: str
    """Manifest of the training set (it covers size and classes)."""
    settings: ClassifierSettings


def train_classifier(
    run: Run, start: Classifier, data: LabelledImages, settings: ClassifierSettings
) -> dict[str, Tensor]:
    """Train the network of `start` in place and return its state dict; reports `train_accuracy` (0..1).

    Call it inside `RunStore.run` with a `ClassifierRun`. Training and network stay where the network of `start` is; the
    device is not part of the key. The network ends in evaluation mode, the global random state is left as it was.

    Raises:
        ValueError: fewer than two images, or another number of classes than the network has.
        Diverged: the loss became NaN or infinite.
    """
    if len(data.images) < 2 or len(data.classes) != len(start.classes):
        raise ValueError(
            f"data: {len(data.images)} images of {len(data.classes)} classes; expected at least two images of the "
            f"network's {len(start.classes)} classes (see replace_head of load_classifier)"
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        _fit(run, start, data, settings)
    run.report(train_accuracy=accuracy(start, data))
    return dict(start.network.state_dict())


@torch.no_grad()
def accuracy(classifier: Classifier, data: LabelledImages, batch_size: int = 64) -> float:
    """Share (0..1) of `data` whose label gets the highest logit."""
    return float((predicted_classes(classifier, data.images, batch_size) == data.labels).float().mean())


@torch.no_grad()
def predicted_classes(
    classifier: Classifier, images: UInt8[Tensor, "n 3 h w"], batch_size: int = 64
) -> Int[Tensor, " n"]:
    """Index of the highest logit per image, on the CPU; computed where the network is.

    Raises:
        ValueError: a logit is NaN or infinite; the message counts the image.
    """
    device = next(classifier.network.parameters()).device
    apply = classifier.normalisation.apply
    logits = torch.cat([classifier.network(apply(part.to(device))) for part in images.split(batch_size)]).cpu()
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"images[{first}]: {classifier.architecture} gives NaN or infinite logits; check its weights")
    return logits.argmax(1)


class _Losses:
    """Losses of the last steps, left on the device: to read one is to wait for the step."""

    def __init__(self, run: Run) -> None:
        self.run, self.waiting = run, list[Tensor]()

    def add(self, step: int, loss: Float[Tensor, ""], *, write: bool) -> None:
        """Keep the loss of a step; `write` puts all that wait into the run's history."""
        self.waiting.append(loss.detach())
        if write:
            values = torch.stack(self.waiting).tolist()
            for at, value in enumerate(values, start=step + 1 - len(values)):
                self.run.log(at, loss=value)
            self.waiting = []

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"waiting": self.waiting}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.waiting = list(state["waiting"])


def _fit(run: Run, classifier: Classifier, data: LabelledImages, settings: ClassifierSettings) -> None:
    network, losses = classifier.network, _Losses(run)
    device = next(network.parameters()).device
    learners = _learners(classifier, settings)
    batch = min(settings.batch_size, len(data.images))
    steps = settings.epochs * (len(data.images) // batch)
    optimizer = _optimizer(learners, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps, settings))
    state: dict[str, Resumable] = {"network": network, "optimizer": optimizer, "schedule": schedule, "losses": losses}
    for step in run.steps(steps, state=state):
        network.train(settings.trainable == "all")
        chosen, chance = batch_of_step(step, len(data.images), batch, settings.seed)
        images = flip_and_shift(data.images[chosen], flip=settings.flip, shift=settings.shift, generator=chance)
        logits = network(classifier.normalisation.apply(images.to(device)))
        loss = F.cross_entropy(logits, data.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.add(step, loss, write=(step + 1) % LOG_EVERY == 0 or step == steps - 1)
    network.eval()


def batch_of_step(step: int, images: int, batch: int, seed: int) -> tuple[Int[Tensor, " batch"], torch.Generator]:
    """The images of a step and the generator of its augmentation.

    Both follow from (seed, step) alone: a resumed training needs no position to be stored. Each epoch is a new
    order; a remainder smaller than a batch is left out, since batch norm cannot take a batch of one.
    """
    epoch, position = divmod(step, images // batch)
    order = order_of_epoch(images, named_seed("order", seed, epoch))
    return order[position * batch : (position + 1) * batch], generator(named_seed("augmentation", seed, step))


def _learners(classifier: Classifier, settings: ClassifierSettings) -> list[nn.Parameter]:
    if settings.trainable == "all":
        return list(classifier.network.parameters())
    classifier.network.requires_grad_(False)
    head = classifier.network.get_submodule(architecture_of(classifier.architecture).head or "")
    return list(head.requires_grad_(True).parameters())


def _optimizer(parameters: list[nn.Parameter], settings: ClassifierSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9)


def _rate_factor(step: int, steps: int, settings: ClassifierSettings) -> float:
    return 1.0 if settings.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
