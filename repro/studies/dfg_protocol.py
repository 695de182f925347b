"""Who is trained on what in DFG's tables (§4.1), with Table 1 and Appendix A generated from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import torch
import yaml
from torch import Tensor, nn

from repro.data.images import ImageSet, label_map
from repro.data.imbalance import held_out_split, majority_combinations, step_imbalance
from repro.data.load import MissingDataError, load_dataset
from repro.data.registry import Fit, find_entry
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureDiscriminator, FeatureGenerator
from repro.models.split_classifier import Architecture, SplitClassifier, split_classifier
from repro.studies.rows import RowCollector
from repro.training.dfg_settings import PAPER_SETTINGS, DFGReadings, DFGSettings
from repro.training.sampling import Augmentation, InputScale, ResidentData, resident
from repro.vocabulary import DatasetName, DFGTarget


@dataclass(frozen=True)
class Protocol:
    """One row of Tables 1 and 2."""

    source: DatasetName
    architecture: Architecture
    majority_images: int
    """Images per majority class (§4.1); of every class where the set is balanced."""
    ratio: float
    """IR of Table 2; 1 is balanced."""
    printed: str
    """The data set of Table 2 that this one stands for."""
    size: int | None = None
    """Side the images are scaled to; None keeps their own."""
    padding: int = 0
    """Black border in pixels, added on every side (Fashion-MNIST and its sources: 28 → 32)."""
    augmentation: Augmentation | None = None
    fit: Fit | None = None
    """How an image becomes a square; None is the set's own way."""
    scale: InputScale = "symmetric"

    @property
    def minority_images(self) -> int:
        """Images per minority class."""
        return round(self.majority_images / self.ratio)


_CROP_32 = Augmentation(size=32, padding=4)
_CROP_224 = Augmentation(size=224, padding=0)

PROTOCOLS: dict[DFGTarget, Protocol] = {
    "digits": Protocol("font_digits", "lenet5", 100, 10, "svhn", size=32),
    "svhn": Protocol("emnist_digits", "lenet5", 5000, 10, "svhn"),
    "fashion_mnist": Protocol("emnist_digits", "lenet5", 6000, 40, "fashion_mnist", padding=2),
    "stl10": Protocol("cifar10", "vgg16_32", 500, 1, "stl10", size=32, augmentation=_CROP_32),
    "cinic10": Protocol("cifar10", "vgg16_32", 9000, 10, "cinic10", augmentation=_CROP_32),
    "caltech256": Protocol("imagenet", "resnet50", 60, 1, "caltech256", size=256, augmentation=_CROP_224),
    "food101": Protocol("imagenet", "resnet50", 750, 5, "food101", size=256, augmentation=_CROP_224),
}
"""`digits` is the stand-in of the smoke preset: font digits → scikit-learn's handwritten digits, 10:1."""

_PADDED: tuple[DatasetName, ...] = ("mnist", "emnist_digits", "fashion_mnist")


@dataclass(frozen=True)
class Replica:
    """One training: which classes are in the majority, and the seeds."""

    majority: tuple[int, ...]
    """Empty where the set is balanced."""
    seed: int
    """Of initialisation and draws."""
    source: int
    """Seed of the source network."""
    repeat: bool = False
    """Another seed of a combination that is trained already, for the spread over seeds."""


def plan(
    classes: int,
    majorities: Sequence[int],
    combinations: int | Sequence[Sequence[int]] | None,
    repeats: int,
    ratio: float,
    seed: int,
    own_sources: bool = False,
) -> list[Replica]:
    """The trainings of one method.

    Imbalanced: the class combinations (those named, or for every number of majority classes all or that many drawn by
    `seed`), then `repeats` − 1 further seeds of the first one. Balanced: `repeats` seeds. With `own_sources` every seed
    starts from a source network of its own.

    Raises:
        ValueError: an imbalanced plan without majorities, or a named combination that is none of the target's.
    """

    def repeat(majority: tuple[int, ...], r: int) -> Replica:
        return Replica(majority, seed + r, seed + r if own_sources else seed, repeat=bool(majority) and r > 0)

    if ratio == 1:
        return [repeat((), r) for r in range(repeats)]
    if combinations is None or isinstance(combinations, int):
        if not majorities:
            raise ValueError(f"majorities is empty; with ratio={ratio} name at least one number of majority classes")
        chosen = [c for number in majorities for c in majority_combinations(classes, number, combinations, seed)]
    else:
        chosen = [tuple(sorted(combination)) for combination in combinations]
        for one in chosen:
            if not 0 < len(one) < classes or len(set(one)) < len(one) or not set(one) <= set(range(classes)):
                raise ValueError(f"combinations names {list(one)}; give distinct class indices within 0..{classes - 1}")
    return [repeat(one, 0) for one in chosen] + [repeat(chosen[0], r) for r in range(1, repeats)]


def subset_of(
    labels: torch.Tensor, replica: Replica, protocol: Protocol, held_out: float, subset_seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out images of one replica; all seeds of a combination share them."""
    classes = int(labels.max()) + 1
    majority = replica.majority or tuple(range(classes))
    chosen = step_imbalance(labels, majority, protocol.majority_images, protocol.ratio, subset_seed)
    return held_out_split(chosen.indices, labels, held_out, subset_seed)


def paper_settings(target: DFGTarget, changes: Mapping[str, int | float]) -> DFGSettings:
    """Appendix A's settings of a data set with some fields changed.

    Raises:
        ValueError: an unknown field or a value that is not allowed.
    """
    base = PAPER_SETTINGS[PROTOCOLS[target].printed]
    return DFGSettings.model_validate(base.model_dump() | dict(changes))


def protocol_of(target: DFGTarget, readings: DFGReadings) -> Protocol:
    """The target's row of the tables, with what the readings make of it."""
    protocol = PROTOCOLS[target]
    if protocol.architecture != "resnet50" or protocol.augmentation is None:
        return protocol
    central = replace(protocol.augmentation, central=readings.test_crop == "central")
    return replace(protocol, fit=readings.resize, scale=readings.input_scale, augmentation=central)


def load_images(name: DatasetName, split: str, limit: int | None, protocol: Protocol, seed: int) -> ImageSet:
    """A data set as the protocol's network takes it."""
    wanted = None if name in _PADDED else protocol.size
    return load_dataset(name, split=split, limit=limit, size=wanted, seed=seed, fit=protocol.fit)


def resident_images(images: ImageSet, protocol: Protocol) -> ResidentData:
    """An image set as training takes it."""
    border_of = border(images.name, protocol)  # type: ignore[arg-type]
    return resident(images, protocol.architecture == "lenet5", border_of, protocol.scale)


def border(name: DatasetName, protocol: Protocol) -> int:
    """Black pixels on every side: 2 for the 28-pixel sets, so that LeNet-5 and its source see 32."""
    return 2 if name in _PADDED else protocol.padding


def align_head(source: SplitClassifier, source_classes: Sequence[str], target_classes: Sequence[str]) -> int:
    """Reorder the source's outputs so that classes of the same name have the target's index (CIFAR-10 → STL-10).

    Outputs without a partner fill the places that are left, in order. Nothing changes where no name is shared
    (digits → clothes), where the numbers of classes differ, or where the order is the same already.

    Returns:
        Number of classes with the same name in both sets.
    """
    positions = label_map(source_classes, target_classes)
    shared = int((positions >= 0).sum())
    if not shared or len(source_classes) != len(target_classes):
        return shared
    free = iter(sorted(set(range(len(target_classes))) - set(positions.tolist())))
    place = torch.tensor([p if p >= 0 else next(free) for p in positions.tolist()])
    head = source.classifier.head
    with torch.no_grad():
        head.weight.copy_(head.weight[place.argsort()])
        head.bias.copy_(head.bias[place.argsort()])
    return shared


# Table 1 of DFG: sizes of the data sets as registered and counted, and the imbalance protocol in images.

BALANCED_TEST = ("fashion_mnist", "stl10", "cinic10", "caltech256", "food101")
"""Sets with equally many test images in every class; SVHN's differ from digit to digit."""


def protocol_rows(targets: Sequence[DFGTarget]) -> RowCollector:
    """The rows of data sets as registry and protocol give them, without opening any file."""
    found = RowCollector()
    for target in targets:
        protocol, entry = PROTOCOLS[target], find_entry(target)
        values: dict[str, float] = {
            "training_images": entry.splits["train"],
            "majority_images_per_class": protocol.majority_images,
            "imbalance_ratio": protocol.ratio,
        }
        if protocol.ratio > 1:
            values["minority_images_per_class"] = protocol.minority_images
            for majority in (2, 8):
                minority = (entry.classes - majority) * protocol.minority_images
                values[f"sampled_images_{majority}"] = majority * protocol.majority_images + minority
        if target in BALANCED_TEST:
            values["test_images_per_class"] = entry.splits["test"] / entry.classes
        for metric, value in values.items():
            found.add("training_set", metric, value, dataset=target, setting={"dataset": target})
    return found


def counted(target: DFGTarget, majority: int, seed: int) -> tuple[dict[str, int], str] | None:
    """Counts made on the files themselves: whole split, subset with the first `majority` classes, capped classes.

    Returns:
        Counts by name and the manifest, or None where the data set is not on this machine.
    """
    protocol = PROTOCOLS[target]
    try:
        data = load_images(target, "train", None, protocol, seed)
    except MissingDataError:
        return None
    labels = data.labels
    classes = int(labels.max()) + 1
    replica = Replica(tuple(range(majority)) if protocol.ratio > 1 else (), seed, seed)
    chosen = labels[subset_of(labels, replica, protocol, 0.0, seed)[0]].bincount(minlength=classes)
    per_class = labels.bincount(minlength=classes)
    return {
        "classes": classes,
        "training images": len(labels),
        "smallest class": int(per_class.min()),
        "largest class": int(per_class.max()),
        "sampled": int(chosen.sum()),
        "classes below the wanted majority": int((per_class < protocol.majority_images).sum()),
    }, data.manifest


def paper_targets() -> list[DFGTarget]:
    """The six data sets, in printed order."""
    return [target for target in PROTOCOLS if target in PAPER_SETTINGS]


# Appendix A: Tables A.3 to A.8 and the hyper-parameters, from the code beside what is printed.

SCHEDULE_FIELDS = {
    "learning_rate_extractor": "network_lr",
    "learning_rate_classifier": "network_lr",
    "learning_rate_generator": "generator_lr",
    "learning_rate_discriminator": "critic_lr",
    "iterations": "iterations",
    "batch_size": "batch",
    "n_c1": "classes_every",
    "n_c2": "merged_every",
    "n_w": "filter_weights_every",
    "n_d": "critic_updates",
    "gradient_penalty": "penalty",
    "rho": "rho",
    "delta": "threshold",
}
"""Metric of the published table → field of `DFGSettings`."""


@dataclass(frozen=True)
class Layer:
    """One row: what is printed, what the code gives."""

    table: str
    part: str
    layer: str
    printed: str
    ours: str
    inputs: str
    """Size of the flattened input, for linear layers."""

    @property
    def agrees(self) -> bool:
        """Whether the printed dimension is the module's output."""
        return self.printed == self.ours

    @property
    def cells(self) -> list[str]:
        """For a table of text."""
        note = "" if self.agrees else (f"printed is the input, {self.inputs}" if self.printed == self.inputs else "≠")
        return [self.table, self.part, self.layer, self.printed, self.ours, note]


def layers() -> list[Layer]:
    """Every printed layer of Tables A.3–A.8 beside the shape the code produces; computed without any arithmetic."""
    printed = yaml.safe_load(files("repro.studies").joinpath("dfg_layers.yaml").read_text(encoding="utf-8"))
    found = [layer for entry in printed for layer in _layers(**entry)]
    return sorted(found, key=lambda layer: layer.table)


def _layers(table: str, part: str, architecture: Architecture, rows: Sequence[tuple[str, str, str]]) -> list[Layer]:
    shapes: dict[str, str] = {}
    sizes: dict[str, str] = {}

    def keep(name: str, module: nn.Module, output: Tensor) -> None:
        channels, *sides = output.shape[1:] if output.dim() > 1 else output.shape
        shapes[name] = " × ".join(str(size) for size in (*sides, channels))
        if isinstance(module, nn.Linear):
            sizes[name] = str(module.in_features)

    with torch.device("meta"), torch.no_grad():
        network, inputs = _printed_network(part, architecture)
        for _, _, name in rows:
            network.get_submodule(name).register_forward_hook(
                lambda module, _, output, name=name: keep(name, module, output)
            )
        network(*inputs)
    if part == "generator":  # the table prints the linear layer's output as the 4 × 4 map it is folded to
        shapes["project"] = f"4 × 4 × {int(shapes['project']) // 16}"
    return [Layer(table, part, label, size, shapes[name], sizes.get(name, "")) for label, size, name in rows]


def _printed_network(part: str, architecture: Architecture) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of Appendix A and one input of each kind."""
    shape, classes = FEATURE_GAN_SHAPES[architecture], 257 if architecture == "resnet50" else 10
    if part == "classifier":
        side, channels = (224, 3) if architecture == "resnet50" else (32, 1 if architecture == "lenet5" else 3)
        return split_classifier(architecture, classes).eval(), (torch.zeros(1, channels, side, side),)
    if part == "generator":
        inputs = torch.zeros(1, shape.noise), torch.zeros(1, classes), torch.ones(1, shape.feature_channels)
        return FeatureGenerator(shape, classes).eval(), inputs
    return FeatureDiscriminator(shape), (
        torch.zeros(1, shape.feature_channels, shape.feature_side, shape.feature_side),
    )


def layer_sentences(every: Sequence[Layer]) -> list[str]:
    """How many printed entries the code reproduces, and one sentence per entry that it cannot."""
    agreeing = sum(layer.agrees for layer in every)
    return [
        f"{agreeing} of {len(every)} printed layer dimensions of Tables A.3–A.8 are those of the code.",
        *(
            f"{layer.table}, {layer.part}, {layer.layer}: printed {layer.printed}, built {layer.ours}"
            + (f" from an input of {layer.inputs}." if layer.inputs else ".")
            for layer in every
            if not layer.agrees
        ),
    ]


def schedule_rows() -> RowCollector:
    """Appendix A's numbers as the code has them, for every data set of Table 2."""
    found = RowCollector()
    for dataset, settings in PAPER_SETTINGS.items():
        network = PROTOCOLS[dataset].architecture  # type: ignore[index]
        values = {metric: float(getattr(settings, field)) for metric, field in SCHEDULE_FIELDS.items()}
        values |= dict(zip(("alpha", "beta", "gamma"), settings.objective, strict=True))
        for metric, value in values.items():
            found.add("dfg", metric, value, dataset=dataset, network=network, setting={"dataset": dataset})
    return found
