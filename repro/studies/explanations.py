"""Explanations of many images by many methods, scored once and kept: maps are computed once and shared by tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from repro.data.images import ImageSet
from repro.data.load import load_dataset
from repro.explain.augmented import AugmentationSettings, AugmentedGradCAMPlusPlus
from repro.explain.engine import EngineSettings
from repro.explain.gradient import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from repro.explain.score import ScoreCAMSettings, shared_score_maps
from repro.files import content_hash
from repro.metrics.boxes import box_curves, center_gaussian
from repro.metrics.faithfulness import (
    FaithfulnessSettings,
    area_matched,
    explanation_maps,
    explanation_scores,
)
from repro.metrics.faithfulness_metrics import InsertionDeletionSettings, insertion_deletion_curves
from repro.models.classifiers import ArchitectureName, Classifier, architecture_of, load_classifier
from repro.models.weights import weights_hash
from repro.report.experiment import Experiment
from repro.training.classifier import ClassifierRun, ClassifierSettings, predicted_classes, train_classifier
from repro.training.device import device
from repro.training.run_store import Run, RunConfig, RunResult, RunStore

# The network and the images that a ScoreCAM++ notebook explains.


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
        """Normalised images of a slice, where the network is."""
        return self.classifier.normalisation.apply(self.images.images[part].to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the network is, and everything is computed."""
        return next(self.classifier.network.parameters()).device


def prepare_subject(settings: SubjectSettings, store: RunStore) -> Subject:
    """Load the images and the network, (fine-)training it through the run store where `epochs` says so.

    Raises:
        ValueError: unknown data set or architecture, or weights that are missing or do not fit.
    """
    classifier, training = _classifier(settings, store)
    images = _load(settings, "test", settings.images, classifier.input_size)
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


def printed_subjects(parameters: Mapping[str, Any], store: RunStore) -> dict[str, Subject]:
    """The subject that stands for each printed network: `networks` maps the printed one to the one explained."""
    return {
        printed: prepare_subject(SubjectSettings.of({**parameters, "architecture": architecture}), store)
        for printed, architecture in parameters["networks"].items()
    }


def note_subject(experiment: Experiment, subject: Subject) -> None:
    """Put data, weights and readings into the record, and every difference from the printed table's setting."""
    settings = subject.settings
    experiment.uses_data(subject.images.name, subject.images.manifest, skipped=len(subject.images.skipped))
    experiment.evaluates(f"{subject.images.name}/{subject.images.split}", subject.images.ids)
    if subject.training is not None:
        experiment.uses_run(subject.training.key)
    experiment.reads(scorecampp__target=settings.target)
    if "score_space" in experiment.parameters:
        experiment.reads(scorecampp__metric__score_space=experiment.parameters["score_space"])
    experiment.differs(dataset=settings.dataset, network=settings.architecture, images=len(subject.images))
    if settings.dataset == "dogs_vs_cats":
        experiment.deviates(
            "split: Kaggle's test images have no labels, so a fifth of its 25,000 training images is explained and the "
            "rest trains; the paper trains on 25,000 and explains 4,000 drawn from 12,500 test images (§5)."
        )


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
    start.network.to(device())
    if not settings.epochs:
        return start, None
    train = _load(settings, "train", settings.train_images, start.input_size)
    recipe = ClassifierSettings.for_architecture(settings.architecture, epochs=settings.epochs, seed=settings.seed)
    config = ClassifierRun(
        architecture=settings.architecture, weights=_weights_hash(settings), data=train.manifest, settings=recipe
    )
    result = store.run(config, lambda run: train_classifier(run, start, train, recipe))
    start.network.load_state_dict(result.tensors)
    start.network.eval()
    return start, result


def _load(settings: SubjectSettings, split: str, limit: int | None, size: int) -> ImageSet:
    bad = settings.on_bad_image
    return load_dataset(settings.dataset, split=split, limit=limit, size=size, seed=settings.seed, on_bad_image=bad)


def _weights_hash(settings: SubjectSettings) -> str:
    if settings.weights is None:
        return content_hash([settings.architecture, settings.weights, settings.seed])
    return weights_hash(settings.weights, architecture_of(settings.architecture).published)


GRADIENT_METHODS = {"gradcam": GradCAM, "gradcampp": GradCAMPlusPlus, "xgradcam": XGradCAM, "layercam": LayerCAM}
SCORE_METHODS: Mapping[str, ScoreCAMSettings] = {
    "scorecam": ScoreCAMSettings(),
    "scorecam_eq5": ScoreCAMSettings(baseline="input"),
    "scorecampp": ScoreCAMSettings(gate="tanh"),
    "scorecampp_mask_only": ScoreCAMSettings(gate="tanh", gate_on="mask"),
    "scorecampp_eq10": ScoreCAMSettings(gate="tanh", baseline="input"),
    "scorecampp_relu": ScoreCAMSettings(gate="relu"),
    "scorecampp_sigmoid": ScoreCAMSettings(gate="sigmoid"),
    "scorecampp_sigmoid_relu": ScoreCAMSettings(gate="sigmoid_relu"),
    "scorecampp_mish": ScoreCAMSettings(gate="mish"),
    "scorecampp_swish": ScoreCAMSettings(gate="swish"),
}
AREA_MATCHED = "scorecam_area_matched"
CONTROLS: Mapping[str, tuple[str, str]] = {
    AREA_MATCHED: ("scorecam", "scorecampp"),
    "scorecampp_area_matched": ("scorecampp", "scorecam"),
    "gradcam_area_matched": ("gradcam", "scorecampp"),
    "gradcampp_area_matched": ("gradcampp", "scorecampp"),
    "xgradcam_area_matched": ("xgradcam", "scorecampp"),
    "layercam_area_matched": ("layercam", "scorecampp"),
    "auggradcampp_area_matched": ("auggradcampp", "scorecampp"),
    "centre_gaussian": ("centre_gaussian", "scorecampp"),
    "noise": ("noise", "scorecampp"),
}
"""Control: whose map is raised to a power, and whose mean area it then has on every image. Score-CAM is widened to
ScoreCAM++'s area and ScoreCAM++ narrowed to Score-CAM's; the last two maps know nothing of the image."""
Precision = Literal["float32", "bfloat16"]
BATCH_OF_IMAGES = 4

VIT_METHODS = ("gradcam", "gradcampp", "xgradcam", "layercam", "scorecam", "scorecampp")
PAPER_METHODS = ("gradcam", "gradcampp", "xgradcam", "layercam", "scorecam", "auggradcampp", "scorecampp")


OTHER_GATES = tuple(name for name, rule in SCORE_METHODS.items() if rule.gate not in (None, "tanh"))
GROUPS: tuple[tuple[str, ...], ...] = (
    (*PAPER_METHODS, *CONTROLS, "scorecam_eq5", "scorecampp_mask_only", "scorecampp_eq10"),
    *((name,) for name in OTHER_GATES),
)
"""Methods that are run together. The first group shares two runs of the masked passes among all it lists, so that
Tables 1-4 and 6-8 of a network cost one; each other gate of Table 5 needs masked passes of its own."""


class ExplanationConfig(RunConfig):
    """Key of one group of scored explanations."""

    kind: ClassVar[str] = "explanations"
    version: int = 2
    """2: overlap with the images' boxes is kept, too."""
    subject: SubjectSettings
    data: str
    """Manifest of the explained images."""
    weights: str
    methods: tuple[str, ...]
    faithfulness: FaithfulnessSettings
    insertion_steps: int
    """Steps of the insertion and deletion curves, 0 to leave them out."""
    augmented_copies: int
    """Copies of Augmented Grad-CAM++."""
    precision: Precision
    """Of the masked passes; the metrics themselves are always scored in float32."""


@dataclass(frozen=True)
class Explanations:
    """Scores behind every faithfulness number; columns follow `methods`."""

    methods: tuple[str, ...]
    tensors: dict[str, Tensor]
    """`original_…` (n,); `kept_…`, `removed_…`, `area`, `constant`, `insertion`, `deletion` (n, m); `box_iou`
    (n, m, 256) where the images have boxes."""
    results: tuple[RunResult, ...]

    def column(self, name: str, method: str) -> Float[Tensor, n * levels]:
        """One method's numbers; ValueError where the method was not among those explained."""
        if method not in self.methods:
            raise ValueError(f"method '{method}' was not explained; there are {', '.join(self.methods)}")
        return self.tensors[name][:, self.methods.index(method)]

    def of_images(self, chosen: Bool[Tensor, " n"]) -> Explanations:
        """The same explanations of some of the images."""
        return replace(self, tensors={name: value[chosen] for name, value in self.tensors.items()})


def area_reached(explanations: Explanations, control: str, tolerance: float = 0.005) -> Bool[Tensor, " n"]:
    """Images whose control map has the wanted area; a map with too few pixels above zero cannot be widened to it."""
    difference = explanations.column("area", control) - explanations.column("area", CONTROLS[control][1])
    return difference.abs() <= tolerance


class _Rows:
    """Results batch by batch, as a state that a checkpoint can hold."""

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parts.setdefault(name, []).append(value.detach().float().cpu().clone())

    def state_dict(self) -> dict[str, list[Tensor]]:
        return self.parts

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        self.parts = state

    def concatenated(self) -> dict[str, Tensor]:
        return {name: torch.cat(values) for name, values in self.parts.items()}


def make_maps(
    subject: Subject,
    part: slice,
    methods: Sequence[str],
    augmented_copies: int = 8,
    precision: Precision = "float32",
) -> dict[str, Float[Tensor, "k 1 h w"]]:
    """Raw maps (>= 0, input size, where the network is) of a slice of the subject's images, by method id.

    Raises:
        ValueError: an unknown method id.
    """
    inputs, targets = subject.inputs(part), subject.targets[part].to(subject.device)
    network, layer = subject.classifier.network, subject.classifier.target_layer
    controls = [name for name in methods if name in CONTROLS]
    wanted = dict.fromkeys([*methods, *(name for control in controls for name in CONTROLS[control])])
    maps: dict[str, Tensor] = ignorant_maps(inputs, part) if controls else {}
    for name in wanted:
        if name in GRADIENT_METHODS:
            maps[name] = GRADIENT_METHODS[name](network, layer).attribute(inputs, targets)
        elif name == "auggradcampp":
            settings = AugmentationSettings(copies=augmented_copies)
            explainer = AugmentedGradCAMPlusPlus(network, layer, settings)
            maps[name] = explainer.attribute(inputs, targets)
        elif name not in SCORE_METHODS and name not in CONTROLS and name not in maps:
            known = [*GRADIENT_METHODS, "auggradcampp", *SCORE_METHODS, *CONTROLS]
            raise ValueError(f"unknown method '{name}'; expected one of {', '.join(known)}")
    scored = {name: SCORE_METHODS[name] for name in wanted if name in SCORE_METHODS}
    if scored:
        engine = EngineSettings(dtype=torch.bfloat16 if precision == "bfloat16" else None)
        maps |= shared_score_maps(network, layer, inputs, scored, targets, engine=engine)
    if controls:
        sources, likes = (torch.cat([maps[CONTROLS[name][side]] for name in controls], dim=1) for side in (0, 1))
        maps |= dict(zip(controls, match_area(sources, likes).split(1, dim=1), strict=True))
    return {name: maps[name] for name in methods}


def ignorant_maps(inputs: Float[Tensor, "k 3 h w"], part: slice) -> dict[str, Float[Tensor, "k 1 h w"]]:
    """Maps that know nothing: a Gaussian in the centre, and uniform noise on a 7 × 7 grid drawn for each image."""
    count, size = len(inputs), (inputs.shape[2], inputs.shape[3])
    draws = [torch.Generator().manual_seed(part.start + row) for row in range(count)]
    noise = torch.cat([torch.rand(1, 1, 7, 7, generator=draw) for draw in draws]).to(inputs.device)
    side = max(size)
    gaussian = center_gaussian(side, sigma=side / 4).float().to(inputs.device).expand(count, 1, -1, -1)
    known = {"centre_gaussian": gaussian, "noise": noise}
    return {name: F.interpolate(values, size, mode="bilinear") for name, values in known.items()}


def match_area(maps: Float[Tensor, "n m h w"], wanted: Float[Tensor, "n m h w"]) -> Float[Tensor, "n m h w"]:
    """`maps` raised to the power that gives each the mean area of `wanted` after min–max."""
    settings = FaithfulnessSettings()
    size = (maps.shape[2], maps.shape[3])
    masks = explanation_maps(maps, size, settings).masks
    area = explanation_maps(wanted, size, settings).masks.mean(dim=(2, 3))
    return area_matched(masks, area).maps


def explain(
    subject: Subject,
    methods: Sequence[str],
    settings: FaithfulnessSettings,
    store: RunStore,
    *,
    insertion_steps: int = 0,
    augmented_copies: int = 8,
    precision: Precision = "float32",
) -> Explanations:
    """Explain every image by the groups that hold `methods` and score the explanations.

    Finished groups are loaded, not repeated. Raises ValueError for a method that is in no group.
    """
    if unknown := sorted(set(methods) - {name for group in GROUPS for name in group}):
        raise ValueError(f"unknown methods {unknown}; expected among {', '.join(n for g in GROUPS for n in g)}")
    results: list[RunResult] = []
    groups = [group for group in GROUPS if set(group) & set(methods)]
    for group in groups:
        config = ExplanationConfig(
            subject=subject.settings,
            data=subject.images.manifest,
            weights=subject.weights_key,
            methods=group,
            # Scores are kept on both scales, so the scale is not part of the key.
            faithfulness=settings.model_copy(update={"score_space": "probability"}),
            insertion_steps=insertion_steps,
            augmented_copies=augmented_copies,
            precision=precision,
        )
        results.append(store.run(config, measuring(subject, config)))
    return Explanations(tuple(name for group in groups for name in group), _beside(results), tuple(results))


def _beside(results: Sequence[RunResult]) -> dict[str, Tensor]:
    """Columns of all groups side by side; what has no columns (the original scores) is the same in each."""
    first = results[0].tensors
    return {
        name: value if value.ndim == 1 else torch.cat([result.tensors[name] for result in results], dim=1)
        for name, value in first.items()
    }


def measuring(subject: Subject, config: ExplanationConfig) -> Callable[[Run], dict[str, Tensor]]:
    """The work behind one `ExplanationConfig`: explain and score batch by batch, resumably."""

    def measure(run: Run) -> dict[str, Tensor]:
        rows = _Rows()
        batches = range(0, len(subject.images), BATCH_OF_IMAGES)
        for step in run.steps(len(batches), {"rows": rows}, name="images"):
            part = slice(batches[step], batches[step] + BATCH_OF_IMAGES)
            rows.add(_score_batch(subject, part, config))
        return rows.concatenated()

    return measure


def _score_batch(subject: Subject, part: slice, config: ExplanationConfig) -> dict[str, Tensor]:
    raw = make_maps(subject, part, config.methods, config.augmented_copies, config.precision)
    maps = torch.cat(list(raw.values()), dim=1)
    _require_finite(maps.isfinite().flatten(2).all(dim=2), subject, part, config.methods, "map")
    inputs, targets = subject.inputs(part), subject.targets[part].to(subject.device)
    common: dict[str, Any] = {"normalisation": subject.classifier.normalisation}
    network = subject.classifier.network
    kept = explanation_scores(network, inputs, maps, targets, config.faithfulness, **common)
    removed = explanation_scores(network, inputs, maps, targets, config.faithfulness, region="removed", **common)
    _require_finite(kept.masked.logit.isfinite(), subject, part, config.methods, "score behind its map")
    found = {
        "original_logit": kept.original.logit,
        "original_probability": kept.original.probability,
        "kept_logit": kept.masked.logit,
        "kept_probability": kept.masked.probability,
        "removed_logit": removed.masked.logit,
        "removed_probability": removed.masked.probability,
        "area": kept.area,
        "constant": kept.constant,
    }
    if config.insertion_steps:
        curves = insertion_deletion_curves(
            network, inputs, maps, targets, InsertionDeletionSettings(steps=config.insertion_steps), **common
        )
        found |= {"insertion": curves.insertion_auc, "deletion": curves.deletion_auc}
    if subject.images.boxes is not None:
        found["box_iou"] = box_overlap(maps, subject.images.boxes[part])
    return found


def box_overlap(maps: Float[Tensor, "k m h w"], boxes: Sequence[Int[Tensor, "_ 4"]]) -> Float[Tensor, "k m 256"]:
    """Best IoU of a map's contour boxes with the framed objects (half-open, in the image's pixels), at every level."""
    truth = [box.numpy() for box in boxes for _ in range(maps.shape[1])]
    curves = box_curves(maps.flatten(0, 1), truth, convention="clean", side=None)
    return curves.matrix("all").view(*maps.shape[:2], -1)


def _require_finite(
    finite: Bool[Tensor, "k m"], subject: Subject, part: slice, methods: Sequence[str], what: str
) -> None:
    if not bool(finite.all()):
        row, column = finite.logical_not().nonzero()[0].tolist()
        image, settings = subject.images.ids[part.start + row], subject.settings
        raise ValueError(
            f"image '{image}' of {settings.dataset}: the {what} of {methods[column]} is NaN or infinite; check "
            f"{settings.architecture}'s weights and precision"
        )
