"""Table 1 of DFG: sizes of the data sets as registered and counted, and the imbalance protocol in images."""

from repro.data.entries import ENTRIES
from repro.data.load import MissingDataError
from repro.data.registry import find_entry
from repro.evidence.record import Row, Setting
from repro.studies.dfg_protocol import PROTOCOLS, Replica, load_images, subset_of
from repro.training.dfg_settings import PAPER_SETTINGS
from repro.vocabulary import DFGTarget

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
    protocol, entry = PROTOCOLS[target], find_entry(target, ENTRIES)
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
