"""What R replicas learn: one resident data set, per replica an imbalanced subset, a held-out part and a seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from repro.data.image_set import ImageSet
from repro.metrics.imbalanced import confusion_counts, macro_recall, top1_accuracy
from repro.models import SplitClassifier, lenet5, resnet50_split, vgg16_32
from repro.models.split_classifier import Architecture
from repro.training.dfg_settings import DFGReadings
from repro.training.replicas import ReplicaNetwork
from repro.training.run import Run
from repro.training.sampling import Augmentation, ResidentData


@dataclass(frozen=True, eq=False)
class ReplicaTasks:
    """R imbalanced tasks on one data set.

    Attributes:
        train: all training images, resident on the device.
        test: the untouched test set, resident too.
        classes: number of classes.
        subsets: per replica the images it is trained on.
        held_out: per replica training images kept for choosing a model; may be empty.
        seeds: per replica the seed of its initialisation and draws.
        augmentation: of training images, or None (LeNet-5).
    """

    train: ResidentData
    test: ResidentData
    classes: int
    subsets: Sequence[Int[Tensor, " _"]]
    held_out: Sequence[Int[Tensor, " _"]]
    seeds: Sequence[int]
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if not len(self.subsets) == len(self.held_out) == len(self.seeds) > 0:
            raise ValueError(
                f"got {len(self.subsets)} subsets, {len(self.held_out)} held-out parts and {len(self.seeds)} seeds; "
                "give one of each per replica, and at least one replica"
            )

    @property
    def device(self) -> torch.device:
        """Where the data lies and training happens."""
        return self.train.labels.device

    @property
    def replicas(self) -> int:
        """R."""
        return len(self.seeds)

    def select(self, replicas: Sequence[int]) -> "ReplicaTasks":
        """The tasks of some replicas."""
        return ReplicaTasks(
            self.train,
            self.test,
            self.classes,
            [self.subsets[r] for r in replicas],
            [self.held_out[r] for r in replicas],
            [self.seeds[r] for r in replicas],
            self.augmentation,
        )

    def class_counts(self) -> Int[Tensor, "r k"]:
        """Training images per replica and class."""
        return torch.stack(
            [torch.bincount(self.train.labels[subset], minlength=self.classes) for subset in self.subsets]
        )


def build_classifier(architecture: Architecture, classes: int, readings: DFGReadings) -> SplitClassifier:
    """A fresh classifier with the layer sizes that the readings choose."""
    if architecture == "lenet5":
        return lenet5(classes, readings.hidden)
    if architecture == "vgg16_32":
        return vgg16_32(classes, readings.dropout)
    return resnet50_split(classes)


def resident(data: ImageSet, grey: bool) -> ResidentData:
    """An image set as training takes it; `grey` turns RGB into ITU-R 601 luminance (LeNet-5; SVHN in Appendix A)."""
    images = data.images
    if grey:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        # In parts: the float copy of a large set would be twelve times its size.
        parts = [(part.float() * weights).sum(1, keepdim=True).round().byte() for part in images.split(10_000)]
        images = torch.cat(parts)
    return ResidentData(images, data.labels)


@torch.no_grad()
def predict(
    network: nn.Module, data: ResidentData, index: Tensor, augmentation: Augmentation | None, batch: int = 1000
) -> Int[Tensor, " n"]:
    """Predicted classes of the images at `index` (central crop where training crops)."""
    dtype = next(network.parameters()).dtype
    parts = [network(data.inputs(part, dtype, augmentation)).argmax(-1) for part in index.split(batch)]
    return torch.cat(parts) if parts else index[:0]


def log_accuracy(
    run: Run, step: int, extractor: ReplicaNetwork, classifier: ReplicaNetwork, tasks: ReplicaTasks
) -> None:
    """Log every replica's `<replica>/{test,held_out}/{top1_accuracy,macro_recall}`, in percent."""
    everything = torch.arange(len(tasks.test.labels), device=tasks.device)
    for r in range(tasks.replicas):
        network = nn.Sequential(extractor.network(r), classifier.network(r)).eval()
        values = {}
        for name, data, index in (
            ("test", tasks.test, everything),
            ("held_out", tasks.train, tasks.held_out[r].to(tasks.device)),
        ):
            if len(index):
                predicted = predict(network, data, index, tasks.augmentation)
                confusion = confusion_counts(predicted, data.labels[index], tasks.classes)
                values[f"{r}/{name}/top1_accuracy"] = top1_accuracy(confusion).item()
                values[f"{r}/{name}/macro_recall"] = macro_recall(confusion).item()
        run.log(step, **values)


def chosen_accuracies(history: Sequence[Mapping[str, int | float]], replica: int) -> dict[str, dict[str, int | float]]:
    """Test accuracies under three ways of choosing the iterate, from the history `log_accuracy` wrote.

    Returns:
        `last`: the last iterate; `held_out`: the iterate with the best macro recall on held-out *training* images (the
        latest of equals; missing without a held-out part); `best_on_test`: the authors' convention, chosen on the
        test set and therefore optimistic. Each maps `top1_accuracy`, `macro_recall` and `step` to numbers.
    """
    rows = [row for row in history if f"{replica}/test/top1_accuracy" in row]
    if not rows:
        raise ValueError(f"the history has no test accuracy of replica {replica}")
    chosen = {"last": rows[-1], "best_on_test": max(rows, key=lambda row: row[f"{replica}/test/top1_accuracy"])}
    if f"{replica}/held_out/macro_recall" in rows[0]:
        chosen["held_out"] = max(rows[::-1], key=lambda row: row[f"{replica}/held_out/macro_recall"])
    return {
        rule: {
            "step": row["step"],
            "top1_accuracy": row[f"{replica}/test/top1_accuracy"],
            "macro_recall": row[f"{replica}/test/macro_recall"],
        }
        for rule, row in chosen.items()
    }
