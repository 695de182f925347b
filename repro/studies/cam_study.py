"""Train a CAM network by a method and localise with it: both kept in the run store, so that tables share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from repro.data.images import ImageSet
from repro.data.load import load_dataset
from repro.files import content_hash, file_hash
from repro.losses.cam import unit_range
from repro.models.cam_backbones import (
    alexnet_gap,
    googlenet_cam,
    inception_v3_cam,
    small_cam,
    small_inception,
    squeezenet_cam,
    vgg16_cam,
)
from repro.models.cam_network import CAMNetwork
from repro.models.weights import find_weights, read_weights
from repro.studies.localised import Localised, measure
from repro.training.batches import TrainingSettings
from repro.training.cam import (
    LocalisationMaps,
    Method,
    evaluate_localisation,
    prepare_network,
    ten_crop_probabilities,
)
from repro.training.device import device
from repro.training.ega import CAMSettings, train_ega
from repro.training.run_store import Run, RunConfig, RunResult, RunStore
from repro.vocabulary import CAMNetworkName

# CAM networks by name, with the weights they start from.

Weights = dict[str, Tensor] | None
_BUILDERS: dict[CAMNetworkName, Callable[[int, Weights, int | None], CAMNetwork]] = {
    "small_cam": lambda classes, weights, width: small_cam(classes, width=width or 32, weights=weights),
    "small_inception": lambda classes, weights, width: small_inception(classes, width=width or 16, weights=weights),
    "squeezenet": lambda classes, weights, width: squeezenet_cam(classes, width=width or 256, weights=weights),
    "alexnet_gap": lambda classes, weights, width: alexnet_gap(classes, weights=weights),
    "vgg16": lambda classes, weights, width: vgg16_cam(classes, weights=weights),
    "vgg16_benchmark": lambda classes, weights, width: vgg16_cam(
        classes, batch_norm="none", head="cam", weights=weights
    ),
    "googlenet": lambda classes, weights, width: googlenet_cam(classes, weights=weights),
    "inception_v3": lambda classes, weights, width: inception_v3_cam(classes, weights=weights),
}
_TORCHVISION: dict[CAMNetworkName, str] = {
    "squeezenet": "SqueezeNet1_0_Weights.IMAGENET1K_V1",
    "alexnet_gap": "AlexNet_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_BN_Weights.IMAGENET1K_V1",
    "vgg16_benchmark": "VGG16_Weights.IMAGENET1K_V1",
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
    "inception_v3": "Inception_V3_Weights.IMAGENET1K_V1",
}


def build_network(
    name: CAMNetworkName, classes: int, *, width: int | None, weights: str | None, seed: int
) -> CAMNetwork:
    """A CAM network whose new layers are drawn with `seed`.

    Args:
        name: `vgg16` and `googlenet` are those of EGA §4.1, `vgg16_benchmark` and `inception_v3` those of the WSOL
            benchmark and of the authors' released code.
        classes: number of classes.
        width: channels of the first stage (`small_cam`, `small_inception`) or of the head (`squeezenet`); the others
            have the paper's.
        weights: `torchvision`, a file under `<REPRO_DATA>/weights`, or None for random ones.
        seed: of everything random in it.

    Raises:
        WeightsUnavailable: the weights are not here or do not fit.
    """
    state = None if weights is None else read_weights(weights, _TORCHVISION.get(name))
    torch.manual_seed(seed)
    return _BUILDERS[name](classes, state, width)


def weights_key(weights: str | None) -> str:
    """Hash of the weights a network starts from: of the file's bytes, or of the name."""
    return content_hash(weights) if weights in (None, "torchvision") else file_hash(find_weights(str(weights)))


class LocalisationSettings(BaseModel):
    """Data, network and training that the methods of a table share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """Registry name; trained on its `train` split, localised on `test`."""
    network: CAMNetworkName
    width: int | None = None
    """Channels of the small networks, None for their own."""
    weights: str | None = None
    """Start of the backbone: `torchvision`, a file under `<REPRO_DATA>/weights`, or None for random."""
    image_size: int | None = None
    """Side at which images are stored, None for the set's own."""
    train_images: int | None = None
    test_images: int | None = None
    pretrain_epochs: int = 0
    """Epochs of plain CAM training from which all methods and seeds go on, where no pretrained weights exist."""
    class_crops: Literal["ten", "one"] = "ten"
    """Crops that decide the class (reading `ega.metric.class_crops`)."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    training: TrainingSettings = TrainingSettings()

    @property
    def evaluated_size(self) -> int | None:
        """Side at which evaluated images are read: that of the crop where there is one of resized images (EGA §4.1), so
        that an original is scaled once."""
        return self.image_size if self.training.resize is None else self.training.crop


SCHEDULES: dict[str, dict[str, Any]] = {
    "cub": {"epochs": 100, "decay_epochs": (80,)},
    "ilsvrc": {"epochs": 20, "decay_epochs": (10, 15)},
    "openimages30k": {"epochs": 10, "decay_epochs": (3, 6, 9)},
}
"""The schedule of each data set, equal in all tables, so that a network of several tables is trained once. CUB: DANet;
OpenImages: the release's README; ILSVRC: ours (the paper and DANet say nothing, SPG and ACoL train 5 to 21 epochs)."""


class CAMRun(RunConfig):
    """Key of one CAM training."""

    kind: ClassVar[str] = "cam"
    network: CAMNetworkName
    width: int | None
    start: str
    """Hash of the weights, or key of the pretraining."""
    data: str
    """Manifest of the training images."""
    method: str
    """Class of the settings, so that two methods with equal fields stay apart."""
    settings: dict[str, Any]
    seed: int


class LocalisationRun(RunConfig):
    """Key of one evaluation."""

    kind: ClassVar[str] = "localisation"
    training: str
    """Key of the CAM training."""
    data: str
    """Manifest of the evaluated images."""
    class_crops: Literal["ten", "one"]


def study_settings(parameters: Mapping[str, Any], **replaced: Any) -> LocalisationSettings:
    """The settings that a notebook's parameters name; `replaced` overrides single ones.

    Raises:
        ValueError: epochs are left to the data set, and it has no schedule.
    """
    values = {**parameters, **replaced}
    if values.get("epochs") is None or values.get("decay_epochs") is None:
        if (schedule := SCHEDULES.get(values["dataset"])) is None:
            raise ValueError(
                f"epochs or decay_epochs is none, but '{values['dataset']}' has no schedule of its own (only "
                f"{', '.join(SCHEDULES)} have); give numbers"
            )
        values |= {name: value for name, value in schedule.items() if values.get(name) is None}
    training = {name: values[name] for name in TrainingSettings.model_fields if name in values}
    own = {name: values[name] for name in LocalisationSettings.model_fields if name in values}
    return LocalisationSettings(training=TrainingSettings(**training), **own)


@dataclass(frozen=True)
class StudyImages:
    """The images of a study, read when first asked for; studies that differ in network or method share them."""

    dataset: str
    image_size: int | None
    evaluated_size: int | None
    train_limit: int | None
    test_limit: int | None
    on_bad_image: Literal["stop", "skip"]

    @classmethod
    def of(cls, settings: LocalisationSettings) -> StudyImages:
        """The images that `settings` name, not read yet."""
        sizes = settings.image_size, settings.evaluated_size
        return cls(settings.dataset, *sizes, settings.train_images, settings.test_images, settings.on_bad_image)

    @cached_property
    def train(self) -> ImageSet:
        """Images of the training."""
        return self._load("train", self.train_limit, self.image_size)

    @cached_property
    def test(self) -> ImageSet:
        """Images of the evaluation."""
        return self._load("test", self.test_limit, self.evaluated_size)

    @cached_property
    def val(self) -> ImageSet:
        """Held-out images on which τ may be chosen, as many as are evaluated."""
        return self._load("val", self.test_limit, self.evaluated_size)

    @cached_property
    def _larger(self) -> dict[str, ImageSet]:
        return {}

    def for_crops(self, images: ImageSet) -> ImageSet:
        """The evaluated `images` at the size that ten crops are cut from."""
        if self.evaluated_size == self.image_size:
            return images
        if images.split not in self._larger:
            self._larger[images.split] = self._load(images.split, self.test_limit, self.image_size)
        return self._larger[images.split]

    def _load(self, split: str, limit: int | None, size: int | None) -> ImageSet:
        return load_dataset(self.dataset, split=split, limit=limit, size=size, on_bad_image=self.on_bad_image)


class OtherMapsRun(LocalisationRun):
    """Key of an evaluation with other maps than those of the method that was trained."""

    method: str
    settings: dict[str, Any]


class EnsembleRun(RunConfig):
    """Key of one evaluation of an ensemble."""

    kind: ClassVar[str] = "ensemble"
    trainings: tuple[str, ...]
    """Keys of the members' trainings."""
    data: str
    """Manifest of the evaluated images."""
    class_crops: Literal["ten", "one"]


@dataclass(frozen=True)
class CamStudy:
    """Images and settings of one study; trainings and evaluations go through the run store."""

    settings: LocalisationSettings
    images: StudyImages
    store: RunStore

    def train(self, method: Method, seed: int, fabric: Fabric | None = None) -> RunResult:
        """Train by `method`, or load the finished training; all processes of a launched `fabric` call it together."""
        method = method.trained_as.for_classes(self.images.train.classes)
        start = weights_key(self.settings.weights)
        state: dict[str, Tensor] | None = None
        if self.settings.pretrain_epochs:
            first = self._pretrained(fabric)
            start, state = first.key, first.tensors

        def work(run: Run) -> dict[str, Tensor]:
            network = self._network(seed)
            if state is not None:
                network.load_state_dict(state)
            return train_ega(network, self.images.train, method, run, seed, fabric)

        return self.store.run(self._config(method, seed, start), work, fabric)

    def network(self, method: Method, trained: RunResult) -> CAMNetwork:
        """The trained network in evaluation mode, on the GPU where there is one."""
        parts = method.for_classes(self.images.train.classes).ingredients()
        network = prepare_network(self._network(seed=0), parts)
        network.load_state_dict(trained.tensors)
        return network.to(device()).eval()

    def localise(self, method: Method, seed: int, *, validate: bool = False) -> Localised:
        """Maps, classes, box curves and pixel histogram of all test images, in one pass over the maps.

        With `validate` the same of the held-out images, for the τ policy `validation`.
        """
        trained = self.train(method, seed)
        return self._with_held_out(
            lambda images: Localised(
                self.store.run(
                    self._localisation(method, trained, images),
                    lambda run: measure(images, *self.maps_and_scores(method, trained, images)),
                ),
                trained.key,
                seed,
            ),
            validate,
        )

    def localise_ensemble(
        self, members: Sequence[tuple[Method, int]], seed: int, *, validate: bool = False
    ) -> Localised:
        """Evaluate trainings of several methods or seeds as one: scaled maps averaged, class scores averaged.

        Raises:
            ValueError: there are fewer than two members.
        """
        if len(members) < 2:
            raise ValueError(f"an ensemble has at least 2 members, got {len(members)}")
        trained = [self.train(method, member) for method, member in members]
        keys, crops = tuple(run.key for run in trained), self.settings.class_crops

        def evaluate(images: ImageSet) -> dict[str, Tensor]:
            pairs = zip(members, trained, strict=True)
            found = [self.maps_and_scores(method, run, images) for (method, _), run in pairs]
            scores = torch.stack([member.logits for member in found]).mean(0)
            return measure(images, average_maps([member.maps for member in found]), scores)

        def localise(images: ImageSet) -> Localised:
            config = EnsembleRun(trainings=keys, data=images.manifest, class_crops=crops)
            result = self.store.run(config, lambda run: evaluate(images))
            return Localised(result, result.key, seed)

        return self._with_held_out(localise, validate)

    def maps_and_scores(self, method: Method, trained: RunResult, images: ImageSet) -> LocalisationMaps:
        """Maps of the true classes of `images`, and the scores that decide the class."""
        method = method.for_classes(self.images.train.classes)
        crops = self.images.for_crops(images) if self.settings.class_crops == "ten" else None
        return maps_and_scores(self.network(method, trained), images, method, crops)

    def _with_held_out(self, localise: Callable[[ImageSet], Localised], validate: bool) -> Localised:
        held_out = localise(self.images.val) if validate else None
        return replace(localise(self.images.test), held_out=held_out)

    def _pretrained(self, fabric: Fabric | None) -> RunResult:
        longer = self.settings.training.model_copy(update={"epochs": self.settings.pretrain_epochs, "decay_epochs": ()})
        before = self.settings.model_copy(update={"pretrain_epochs": 0, "training": longer})
        return CamStudy(before, self.images, self.store).train(CAMSettings(training=longer), 0, fabric)

    def _localisation(self, method: Method, trained: RunResult, images: ImageSet) -> LocalisationRun:
        shared = {"training": trained.key, "data": images.manifest, "class_crops": self.settings.class_crops}
        if method.trained_as == method:
            return LocalisationRun(**shared)
        name, settings = type(method).__name__, method.model_dump(mode="json")
        return OtherMapsRun(method=name, settings=settings, version=method.version, **shared)

    def _config(self, method: Method, seed: int, start: str) -> CAMRun:
        return CAMRun(
            version=method.version,
            network=self.settings.network,
            width=self.settings.width,
            start=start,
            data=self.images.train.manifest,
            method=type(method).__name__,
            settings=method.model_dump(mode="json"),
            seed=seed,
        )

    def _network(self, seed: int) -> CAMNetwork:
        settings = self.settings
        classes = len(self.images.train.classes)
        return build_network(settings.network, classes, width=settings.width, weights=settings.weights, seed=seed)


def maps_and_scores(
    network: CAMNetwork, images: ImageSet, method: Method, crops: ImageSet | None = None
) -> LocalisationMaps:
    """Maps of the true classes of `images`, and the scores that decide the class: those of ten crops of `crops`, the
    same images at the side before cropping, or of the whole image."""
    found = evaluate_localisation(network, images, method.training, method.ingredients())
    if crops is None:
        return found
    return LocalisationMaps(found.maps, ten_crop_probabilities(network, crops, method.training))


def average_maps(members: Sequence[Float[Tensor, "n h w"]]) -> Float[Tensor, "n h w"]:
    """Mean of the members' maps, each scaled to [0, 1] first, so that no member outweighs the others.

    Raises:
        ValueError: there are no members, or their maps have different sides.
    """
    shapes = {tuple(maps.shape) for maps in members}
    if len(shapes) != 1:
        raise ValueError(f"an ensemble needs members with maps of one size, got {sorted(shapes)}")
    return torch.stack([unit_range(maps) for maps in members]).mean(0)
