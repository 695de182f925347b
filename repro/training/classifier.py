"""Training and fine-tuning of the classifiers to be explained (ScoreCAM++, appendix C), through the run store."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from repro.models.classifiers import ARCHITECTURES, ArchitectureName, Classifier, load_classifier
from repro.models.weights import Weights, read_weights
from repro.training.augmentation import flip_and_shift
from repro.training.run import Run
from repro.training.run_store import RunConfig, RunResult, RunStore


class LabelledImages(Protocol):
    """What a training needs of an `ImageSet`."""

    @property
    def images(self) -> UInt8[Tensor, "n 3 h w"]:
        """RGB, 0..255."""

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """Class index of each image."""

    @property
    def classes(self) -> list[str]:
        """Class names in index order."""

    @property
    def manifest(self) -> str:
        """Hash of names, labels and pixels."""


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


PAPER_FINE_TUNING = ClassifierSettings()
"""ScoreCAM++, appendix C: Adam, 0.0001, batches of 64, 100 epochs, no augmentation."""

SMALL_NETWORK = ClassifierSettings(learning_rate=3e-3, schedule="cosine", epochs=12, batch_size=32, flip=True, shift=4)
"""From scratch in seconds, for `small_cnn` and `small_vit` on the embedded sets (ours)."""

QUICK_FINE_TUNING = ClassifierSettings(schedule="cosine", epochs=2, batch_size=32, flip=True)
"""Minutes on a CPU: SqueezeNet on the 2,002 dogs and cats of the quick preset (ours)."""


class ClassifierRun(RunConfig):
    """Everything that decides the outcome of `train_classifier`; its hash is the key in the run store."""

    kind: ClassVar[str] = "classifier"

    architecture: ArchitectureName
    input_size: int
    num_classes: int
    start: str
    """`random`, or the hash of the weights the training starts from (all but the head)."""
    data: str
    """Manifest of the training set."""
    settings: ClassifierSettings


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network and the run it came from (`run.metrics["train_accuracy"]`, `run.history`, `run.reused`)."""

    classifier: Classifier
    run: RunResult


def train_classifier(
    architecture: ArchitectureName,
    data: LabelledImages,
    settings: ClassifierSettings,
    *,
    start: Weights = None,
    store: RunStore | None = None,
    device: str = "cpu",
) -> TrainedClassifier:
    """Train `architecture` on `data`, or load it where the same training was finished before.

    Args:
        architecture: see `load_classifier`.
        data: square images; their classes become the network's.
        settings: see there.
        start: weights to fine-tune from, whose last layer is replaced; None starts at random.
        store: by default the project's run store.
        device: where to train; not part of the key. The classifier comes back on the CPU.

    Raises:
        ValueError: images that are not square, or fewer than two of them.
        WeightsUnavailable: the start weights are missing or do not fit.
        Diverged: the loss became NaN or infinite.
    """
    if len(data.images) < 2 or data.images.shape[2] != data.images.shape[3]:
        raise ValueError(f"data: images of shape {tuple(data.images.shape)}; expected at least two square ones")
    size, classes = data.images.shape[2], data.classes
    state = None if start is None else _start_state(architecture, start)
    config = ClassifierRun(
        architecture=architecture,
        input_size=size,
        num_classes=len(classes),
        start="random" if state is None else _hash(state),
        data=data.manifest,
        settings=settings,
    )

    def fresh(weights: Weights, *, replace_head: bool) -> Classifier:
        return load_classifier(
            architecture,
            num_classes=len(classes),
            weights=weights,
            classes=classes,
            input_size=size,
            replace_head=replace_head,
            seed=settings.seed,
        )

    def train(run: Run) -> dict[str, Tensor]:
        classifier = fresh(state, replace_head=state is not None)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            _fit(run, classifier, data, settings, torch.device(device))
        run.report(train_accuracy=accuracy(classifier, data), device=device)
        return dict(classifier.network.state_dict())

    result = (store or RunStore()).run(config, train)
    return TrainedClassifier(fresh(result.tensors, replace_head=False), result)


@torch.no_grad()
def accuracy(classifier: Classifier, data: LabelledImages, batch_size: int = 64) -> float:
    """Share (0..1) of `data` whose label gets the highest logit."""
    return float((predicted_classes(classifier, data.images, batch_size) == data.labels).float().mean())


@torch.no_grad()
def predicted_classes(
    classifier: Classifier, images: UInt8[Tensor, "n 3 h w"], batch_size: int = 64
) -> Int[Tensor, " n"]:
    """Index of the highest logit per image, on the CPU; computed where the network is."""
    device = next(classifier.network.parameters()).device
    apply = classifier.normalisation.apply
    return torch.cat([classifier.network(apply(part.to(device))).argmax(1).cpu() for part in images.split(batch_size)])


def _fit(
    run: Run, classifier: Classifier, data: LabelledImages, settings: ClassifierSettings, device: torch.device
) -> None:
    network = classifier.network.to(device)
    learners = _learners(classifier, settings)
    batch = min(settings.batch_size, len(data.images))
    steps = settings.epochs * (len(data.images) // batch)
    optimizer = _optimizer(learners, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps, settings))
    for step in run.steps(steps, state={"network": network, "optimizer": optimizer, "schedule": schedule}):
        network.train(settings.trainable == "all")
        chosen, chance = batch_of_step(step, len(data.images), batch, settings.seed)
        images = flip_and_shift(data.images[chosen], flip=settings.flip, shift=settings.shift, generator=chance)
        logits = network(classifier.normalisation.apply(images.to(device)))
        loss = F.cross_entropy(logits, data.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.log(step, loss=loss.item())
    network.eval()


def batch_of_step(step: int, images: int, batch: int, seed: int) -> tuple[Int[Tensor, " batch"], torch.Generator]:
    """The images of a step and the generator of its augmentation.

    Both follow from (seed, step) alone: a resumed training needs no position to be stored. Each epoch is a new
    order; a remainder smaller than a batch is left out, since batch norm cannot take a batch of one.
    """
    epoch, position = divmod(step, images // batch)
    order = torch.randperm(images, generator=_generator("order", seed, epoch))
    return order[position * batch : (position + 1) * batch], _generator("augmentation", seed, step)


def _generator(purpose: str, seed: int, index: int) -> torch.Generator:
    digest = hashlib.sha256(f"{purpose} {seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _learners(classifier: Classifier, settings: ClassifierSettings) -> list[nn.Parameter]:
    if settings.trainable == "all":
        return list(classifier.network.parameters())
    classifier.network.requires_grad_(False)
    head = classifier.network.get_submodule(ARCHITECTURES[classifier.architecture].head)
    return list(head.requires_grad_(True).parameters())


def _optimizer(parameters: list[nn.Parameter], settings: ClassifierSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9)


def _rate_factor(step: int, steps: int, settings: ClassifierSettings) -> float:
    return 1.0 if settings.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))


def _start_state(architecture: ArchitectureName, start: Mapping[str, Tensor] | str | Path) -> dict[str, Tensor]:
    return read_weights(start, ARCHITECTURES[architecture].torchvision)


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}\0".encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
