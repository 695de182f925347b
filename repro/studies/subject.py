"""The network and the images that a ScoreCAM++ notebook explains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from repro.data import ImageSet, load_dataset
from repro.files import content_hash, file_hash
from repro.models.classifiers import ArchitectureName, Classifier, load_classifier
from repro.models.weights import find_weights
from repro.report.experiment import Experiment
from repro.training import (
    ClassifierRun,
    ClassifierSettings,
    RunResult,
    RunStore,
    predicted_classes,
    train_classifier,
)


class SubjectSettings(BaseModel):
    """Which network, trained how, on which images; part of the key under which explanations are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """Registry name; its `test` split is explained."""
    images: int
    """Number of explained images, drawn with `seed`."""
    architecture: ArchitectureName
    weights: str | None
    """`torchvision`, a file under `<REPRO_DATA>/weights`, or None for random ones (then train)."""
    epochs: int
    """Epochs of (fine-)training on the data set's `train` split; 0 uses the weights as they are."""
    train_images: int | None = None
    """Training images, None for all of the split."""
    input_size: int | None = None
    """Side of the images in pixels, None for the architecture's own."""
    layer: str | None = None
    """Dotted name of the explained layer; None takes the architecture's own."""
    target: Literal["predicted", "label"] = "predicted"
    """The explained class (reading scorecampp.target)."""
    seed: int = 0
    on_bad_image: Literal["stop", "skip"] = "stop"

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """The settings among a notebook's parameters; both use the same names."""
        return cls(**{name: value for name, value in parameters.items() if name in cls.model_fields})


@dataclass(frozen=True)
class Subject:
    """A network in evaluation mode, the images it is asked about, and the classes explained."""

    settings: SubjectSettings
    classifier: Classifier
    images: ImageSet
    targets: Int[Tensor, " n"]
    accuracy: float
    """Top-1 accuracy on the explained images, in %."""
    weights_key: str
    """Content hash of the weights in use."""
    training: RunResult | None

    def inputs(self, part: slice) -> Float[Tensor, "k 3 h w"]:
        """Normalised images of a slice."""
        return self.classifier.normalisation.apply(self.images.images[part])


def prepare_subject(settings: SubjectSettings, store: RunStore) -> Subject:
    """Load the images and the network, (fine-)training it through the run store where `epochs` says so.

    Raises:
        ValueError: unknown data set or architecture, or weights that are missing or do not fit.
    """
    classifier, training = _classifier(settings, store)
    images = load_dataset(
        settings.dataset,
        split="test",
        limit=settings.images,
        size=classifier.input_size,
        seed=settings.seed,
        on_bad_image=settings.on_bad_image,
    )
    predicted = predicted_classes(classifier, images.images)
    return Subject(
        settings,
        classifier,
        images,
        predicted if settings.target == "predicted" else images.labels,
        100 * (predicted == images.labels).double().mean().item(),
        training.key if training else _weights_hash(settings),
        training,
    )


def note_subject(experiment: Experiment, subject: Subject) -> None:
    """Put data, weights and readings into the record, and every difference from the printed table's setting."""
    settings = subject.settings
    experiment.uses_data(subject.images.name, subject.images.manifest, skipped=len(subject.images.skipped))
    if subject.training is not None:
        experiment.uses_run(subject.training.key)
    experiment.reads(scorecampp__target=settings.target)
    if "score_space" in experiment.parameters:
        experiment.reads(scorecampp__metric__score_space=experiment.parameters["score_space"])
    experiment.differs(dataset=settings.dataset, network=settings.architecture, images=len(subject.images))


def _classifier(settings: SubjectSettings, store: RunStore) -> tuple[Classifier, RunResult | None]:
    classes = load_dataset(settings.dataset, split="test", limit=1).classes
    start = load_classifier(
        settings.architecture,
        num_classes=len(classes),
        classes=classes,
        weights=settings.weights,
        input_size=settings.input_size,
        target_layer=settings.layer,
        replace_head=settings.epochs > 0 and settings.weights is not None,
        seed=settings.seed,
    )
    if not settings.epochs:
        return start, None
    train = load_dataset(
        settings.dataset,
        split="train",
        limit=settings.train_images,
        size=start.input_size,
        seed=settings.seed,
        on_bad_image=settings.on_bad_image,
    )
    recipe = ClassifierSettings.for_architecture(settings.architecture, epochs=settings.epochs, seed=settings.seed)
    config = ClassifierRun(
        architecture=settings.architecture, weights=_weights_hash(settings), data=train.manifest, settings=recipe
    )
    result = store.run(config, lambda run: train_classifier(run, start, train, recipe))
    start.network.load_state_dict(result.tensors)
    start.network.eval()
    return start, result


def _weights_hash(settings: SubjectSettings) -> str:
    if settings.weights in (None, "torchvision"):
        return content_hash([settings.architecture, settings.weights, settings.seed])
    return file_hash(find_weights(str(settings.weights)))
