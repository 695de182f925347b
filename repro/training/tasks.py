"""What R replicas learn: one resident data set, per replica an imbalanced subset, a held-out part and a seed."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repro.data.images import ImageSet
from repro.losses.delta import channel_attention, delta_regularizer, knockout_loss_increase
from repro.losses.dfg import classification_loss
from repro.metrics.classification import confusion_counts, macro_recall, top1_accuracy
from repro.models.split_classifier import Architecture, SplitClassifier, lenet5, resnet50_split, vgg16_32
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import ReplicaNetwork
from repro.training.run_store import Run
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


# What target networks take from the frozen source: its weights, DELTA's regulariser, a refitted last layer.

_ATTENTION_BATCHES = 4  # DELTA's released code


class SourceRegularizer:
    """α·Ω + β·½‖last layer‖² of a regularised training, one value per replica.

    Ω compares E's output and the tapped convolutions of C with those of the source. Its attention is computed per
    replica on four batches of the replica's own images with a source whose last layer was refitted to the target
    classes, as DELTA does; E's channels take the attention of its last convolution.
    """

    def __init__(self, source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings) -> None:
        self.source = frozen_copy(source)
        self._settings = settings
        per_replica = [_attention(source, tasks, r, settings.batch) for r in range(tasks.replicas)]
        self.attention = [torch.stack(layer) for layer in zip(*per_replica, strict=True)]

    def __call__(
        self,
        images: Float[Tensor, "r b c h w"],
        features: Float[Tensor, "r b f p q"],
        maps: tuple[Tensor, ...],
        classifier: ReplicaNetwork,
    ) -> Float[Tensor, " r"]:
        """The penalty for these images; `features` are E's and `maps` C's tapped outputs in training."""
        replicas = images.shape[:2]
        with torch.no_grad():
            source_features = self.source.extractor(images.flatten(0, 1))
            _, source_maps = self.source.classifier.with_maps(source_features)
        source = [layer.unflatten(0, replicas) for layer in (source_features, *source_maps)]
        omega = delta_regularizer([features, *maps], source, self.attention)
        head = classifier.parameters["head.weight"].square().sum((-2, -1)) / 2
        return self._settings.map_penalty * omega + self._settings.head_penalty * head


def frozen_copy(network: SplitClassifier) -> SplitClassifier:
    """A copy in evaluation mode whose parameters get no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def target_start(source: SplitClassifier, classes: int, seed: int) -> SplitClassifier:
    """The source network as the start of a target training; its last layer is new where class counts differ."""
    network = copy.deepcopy(source).train().requires_grad_(True)
    if network.classes != classes:
        head = network.classifier.head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = torch.nn.Linear(head.in_features, classes)
        network.classifier.head = fresh.to(head.weight)
    return network


def refit_head(source: SplitClassifier, tasks: ReplicaTasks, replica: int, images: int = 5_000) -> SplitClassifier:
    """The frozen source with a new last layer, fitted to a replica's training images by L-BFGS from zero.

    DELTA trains it for 10 epochs of SGD; the problem is convex, so that the optimum (with a weight decay of 10⁻³ that
    makes it unique) is taken instead. At most `images` evenly spaced images are used.
    """
    network = frozen_copy(source)
    subset = tasks.subsets[replica].to(tasks.device)
    subset = subset[:: max(1, -(-len(subset) // images))]
    dtype = network.classifier.head.weight.dtype
    with torch.no_grad():
        parts = [tasks.train.inputs(part, dtype, tasks.augmentation) for part in subset.split(500)]
        embedded = torch.cat([network.classifier.embed(network.extractor(part)) for part in parts])
    head = torch.nn.Linear(embedded.shape[1], tasks.classes).to(embedded)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    labels = tasks.train.labels[subset]

    def closure() -> float:
        optimiser.zero_grad()
        loss = classification_loss(head(embedded), labels) + 1e-3 * head.weight.square().sum() / 2
        loss.backward()
        return loss.item()

    optimiser.step(closure)
    network.classifier.head = head.requires_grad_(False)
    return network


def _attention(source: SplitClassifier, tasks: ReplicaTasks, replica: int, batch: int) -> list[Tensor]:
    network = refit_head(source, tasks, replica)
    subset = tasks.subsets[replica].to(tasks.device)
    wanted = min(_ATTENTION_BATCHES * batch, len(subset))
    chosen = subset[torch.linspace(0, len(subset) - 1, wanted, device=tasks.device).long()]
    images = tasks.train.inputs(chosen, network.classifier.head.weight.dtype, tasks.augmentation)
    convs = [network.extractor.layers.get_submodule(network.extractor.last_conv)]
    convs += [network.classifier.body.get_submodule(tap) for tap in network.classifier.taps]
    labels = tasks.train.labels[chosen]
    return [channel_attention(knockout_loss_increase(network, conv, images, labels)) for conv in convs]


# The optimisers of Appendix A on stacked parameters.


def adam(network: ReplicaNetwork, lr: float, device: torch.device) -> torch.optim.Optimizer:
    """Adam(β₁ = 0.5, β₂ = 0.9) on all replicas; capturable in a CUDA graph."""
    return torch.optim.Adam(network.trainable, lr=lr, betas=(0.5, 0.9), capturable=device.type == "cuda")


def network_optimiser(settings: DFGSettings, network: ReplicaNetwork, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of E or C: Adam for LeNet-5 and VGG-16, SGD with momentum 0.9 for ResNet-50."""
    if settings.network_optimiser == "adam":
        return adam(network, settings.network_lr, device)
    return torch.optim.SGD(network.trainable, lr=settings.network_lr, momentum=0.9)


def drop_learning_rate(settings: DFGSettings, step: int, *optimisers: torch.optim.Optimizer) -> bool:
    """Divide the learning rates by 10 at `settings.network_lr_drop`; True if that happened now."""
    if step != settings.network_lr_drop:
        return False
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] /= 10
    return True
