"""Who is trained on what in Table 2 of DFG: data set, source, network, imbalance (§4.1 and Appendix A)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from repro.data.images import ImageSet, label_map
from repro.data.imbalance import held_out_split, majority_combinations, step_imbalance
from repro.data.load import MissingDataError, load_dataset
from repro.data.registry import find_entry
from repro.evidence.record import Row, Setting
from repro.models.split_classifier import Architecture, SplitClassifier
from repro.training.dfg_settings import PAPER_SETTINGS, DFGSettings
from repro.training.sampling import Augmentation
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
    """One training: which classes are in the majority, and the seed."""

    majority: tuple[int, ...]
    """Empty where the set is balanced."""
    seed: int
    repeat: bool = False
    """Another seed of a combination that is trained already, for the spread over seeds."""


def plan(
    classes: int, majorities: Sequence[int], combinations: int | None, repeats: int, ratio: float, seed: int
) -> list[Replica]:
    """The trainings of one method.

    Imbalanced: for every number of majority classes its combinations (all, or `combinations` drawn by `seed`), then
    `repeats` − 1 further seeds of the first one. Balanced: `repeats` seeds.

    Raises:
        ValueError: an imbalanced plan without majorities.
    """
    if ratio == 1:
        return [Replica((), seed + r) for r in range(repeats)]
    if not majorities:
        raise ValueError(f"majorities is empty; with ratio={ratio} name at least one number of majority classes")
    chosen = [
        Replica(combination, seed)
        for majority in majorities
        for combination in majority_combinations(classes, majority, combinations, seed)
    ]
    return chosen + [Replica(chosen[0].majority, seed + r, repeat=True) for r in range(1, repeats)]


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


def load_images(name: DatasetName, split: str, limit: int | None, protocol: Protocol, seed: int) -> ImageSet:
    """A data set as the protocol's network takes it."""
    wanted = None if name in _PADDED else protocol.size
    return load_dataset(name, split=split, limit=limit, size=wanted, seed=seed)


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

CLASSES: dict[DFGTarget, int] = {
    "digits": 10,
    "svhn": 10,
    "fashion_mnist": 10,
    "stl10": 10,
    "cinic10": 10,
    "caltech256": 257,
    "food101": 101,
}
BALANCED_TEST = ("fashion_mnist", "stl10", "cinic10", "caltech256", "food101")
"""Sets with equally many test images in every class; SVHN's differ from digit to digit."""


def protocol_rows(target: DFGTarget) -> list[Row]:
    """The row of a data set as registry and protocol give it, without opening any file."""
    protocol, entry = PROTOCOLS[target], find_entry(target)
    values: dict[str, float] = {
        "training_images": entry.splits["train"],
        "majority_images_per_class": protocol.majority_images,
        "imbalance_ratio": protocol.ratio,
    }
    if protocol.ratio > 1:
        values["minority_images_per_class"] = protocol.minority_images
        classes = CLASSES[target]
        for majority in (2, 8):
            count = majority * protocol.majority_images + (classes - majority) * protocol.minority_images
            values[f"sampled_images_{majority}"] = count
    if target in BALANCED_TEST:
        values["test_images_per_class"] = entry.splits["test"] / CLASSES[target]
    return [_row(target, metric, value, {"dataset": target}) for metric, value in values.items()]


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
    replica = Replica(tuple(range(majority)) if protocol.ratio > 1 else (), seed)
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


def _row(target: DFGTarget, metric: str, value: float, setting: Setting) -> Row:
    return Row(method="training_set", metric=metric, value=value, dataset=target, setting=setting)
