"""E and C of a target network: what they take from the source, their step on real data, and how accurate they are."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from repro.losses.delta import channel_attention, delta_regularizer, knockout_loss_increase
from repro.losses.dfg import (
    class_balanced_weights,
    class_filter_weights,
    classification_loss,
    inverse_frequency_weights,
    sample_filter_weights,
)
from repro.metrics.classification import confusion_counts, macro_recall, top1_accuracy
from repro.models.split_classifier import FeatureClassifier, SplitClassifier, split_classifier
from repro.training.dfg_settings import DFGReadings, DFGSettings, Recipe
from repro.training.replicas import ReplicaNetwork, build_replicas, descend
from repro.training.run_store import Run
from repro.training.sampling import Augmentation, ReplicaBatch, ReplicaTasks, ResidentData

SourceMeasures = Mapping[str, Tensor]
"""What the source knows of the target's images: `filter_weights`, W(E_S) of shape (R, k, f), and `attention.<layer>`,
DELTA's channel weights of shape (R, c). They depend on source and subset alone, not on method or seed."""

_ATTENTION_BATCHES = 4  # DELTA's released code


def adam(lr: float, device: torch.device) -> Callable[[list[Tensor]], Optimizer]:
    """Makes Adam(β₁ = 0.5, β₂ = 0.9); capturable in a CUDA graph."""
    return lambda leaves: Adam(leaves, lr=lr, betas=(0.5, 0.9), capturable=device.type == "cuda")


def network_optimiser(settings: DFGSettings, device: torch.device) -> Callable[[list[Tensor]], Optimizer]:
    """Makes the optimiser of E or C: Adam for LeNet-5 and VGG-16, SGD with momentum 0.9 for ResNet-50."""
    if settings.network_optimiser == "adam":
        return adam(settings.network_lr, device)
    return lambda leaves: SGD(leaves, lr=settings.network_lr, momentum=0.9)


@dataclass(eq=False)
class TargetNetworks:
    """E and C of R replicas in training, and what a method adds to the cross-entropy on real data."""

    extractor: ReplicaNetwork
    classifier: ReplicaNetwork
    class_weights: Tensor | None
    regularizer: "SourceRegularizer | None"

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters, images and losses."""
        return self.classifier.parameters["head.weight"].dtype

    def classify(self, replica: int) -> SplitClassifier:
        """A plain copy of C(E(·)) of one replica."""
        extractor, classifier = self.extractor.network(replica), self.classifier.network(replica)
        return SplitClassifier(extractor, classifier, frozen=())  # type: ignore[arg-type]

    def embed(self, images: Tensor) -> Tensor:
        """Penultimate features of the images, without gradient."""
        with torch.no_grad():
            return self.classifier.apply(FeatureClassifier.embed, self.extractor(images))

    def step(self, batch: ReplicaBatch, loss_count: int = 1) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        """One step of E and C on real data (eqs. 3 and 4a, Algorithm 1, lines 16 and 17): loss and penalty before it.

        Both are updated from one forward pass, at the same point (the paper: "trained simultaneously"), and both see
        the gradient of both regularisers, as in DELTA and the released code. `loss_count` is how often the
        cross-entropy enters.
        """
        features = self.extractor(batch.images)
        if self.regularizer is None:
            logits = self.classifier(features)
            penalty = torch.zeros_like(logits[..., 0, 0])
        else:
            logits, maps = self.classifier.apply(FeatureClassifier.with_maps, features)
            penalty = self.regularizer(batch.images, features, maps, self.classifier)
        loss = classification_loss(logits, batch.labels, self.class_weights)
        descend(loss_count * loss + penalty, self.extractor, self.classifier)
        return loss.detach(), penalty.detach()


def target_networks(
    recipe: Recipe,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    measures: SourceMeasures | None = None,
) -> TargetNetworks:
    """Initialised E and C with their optimisers, class weights and regulariser.

    `measures` are those of `measure_source`; None measures here what the recipe needs.
    """
    dtype = source.classifier.head.weight.dtype
    if recipe.from_source:
        starts = [target_start(source.to(tasks.device), tasks.classes, seed) for seed in tasks.seeds]
    else:
        starts = fresh_classifiers(tasks, settings, readings, dtype)
    prefixes = starts[0].frozen if recipe.freeze_early else ()

    def part(name: str, networks: Sequence[nn.Module]) -> ReplicaNetwork:
        frozen = [prefix.removeprefix(f"{name}.") for prefix in prefixes if prefix.startswith(f"{name}.")]
        optimise = network_optimiser(settings, tasks.device)
        return ReplicaNetwork(networks, frozen, optimise, readings.fixed_batch_norm == "fixed")

    regularizer = None
    if recipe.regularised:
        measures = source_attention(source, tasks, settings) if measures is None else measures
        regularizer = SourceRegularizer(source, measures, settings)
    return TargetNetworks(
        part("extractor", [start.extractor for start in starts]),
        part("classifier", [start.classifier for start in starts]),
        _class_weights(recipe, tasks, dtype),
        regularizer,
    )


def fresh_classifiers(
    tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, dtype: torch.dtype
) -> list[SplitClassifier]:
    """One randomly initialised classifier per seed."""

    def build() -> SplitClassifier:
        return split_classifier(settings.architecture, tasks.classes, readings.hidden, readings.dropout).to(dtype)

    return build_replicas(build, tasks.seeds, tasks.device)


def target_start(source: SplitClassifier, classes: int, seed: int) -> SplitClassifier:
    """The source network as the start of a target training; its last layer is new where class counts differ."""
    network = copy.deepcopy(source).train().requires_grad_(True)
    if network.classes != classes:
        head = network.classifier.head
        (fresh,) = build_replicas(lambda: nn.Linear(head.in_features, classes), [seed], head.weight.device)
        network.classifier.head = fresh.to(head.weight.dtype)
    return network


def _class_weights(recipe: Recipe, tasks: ReplicaTasks, dtype: torch.dtype) -> Tensor | None:
    if recipe.class_weights == "none":
        return None
    weigh = inverse_frequency_weights if recipe.class_weights == "inverse_frequency" else class_balanced_weights
    return weigh(tasks.class_counts()).to(tasks.device, dtype)


# What is measured once on the frozen source: DELTA's channel attention and W(E_S).


def measure_source(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, recipe: Recipe
) -> dict[str, Tensor]:
    """The `SourceMeasures` that a recipe needs; nothing for most."""
    found = source_attention(source, tasks, settings) if recipe.regularised else {}
    if recipe.generates == "features":
        found["filter_weights"] = source_filter_weights(source, tasks, readings)
    return found


def source_filter_weights(
    source: SplitClassifier, tasks: ReplicaTasks, readings: DFGReadings
) -> Float[Tensor, "r k f"]:
    """W(E_S) of every replica (Algorithm 1, line 2), with a refitted last layer where the reading or k asks for it."""
    refitted = readings.source_head == "refitted" or source.classes != tasks.classes

    def network(replica: int) -> SplitClassifier:
        return refit_head(source, tasks, replica) if refitted else frozen_copy(source)

    return torch.stack([filter_weights(network(r), tasks, r, readings) for r in range(tasks.replicas)])


def filter_weights(
    network: SplitClassifier, tasks: ReplicaTasks, replica: int, readings: DFGReadings
) -> Float[Tensor, "k f"]:
    """Class-wise filter weights of a network in evaluation mode on a replica's own images (eqs. 5 and 6)."""
    subset = tasks.subsets[replica].to(tasks.device)
    labels, limit = tasks.train.labels, readings.filter_weight_images
    if limit is not None:
        subset = torch.cat([subset[labels[subset] == c][:limit] for c in range(tasks.classes)])
    dtype = network.classifier.head.weight.dtype
    weights = [
        sample_filter_weights(
            network.extractor,
            network.classifier,
            tasks.train.inputs(part, dtype, tasks.augmentation),
            labels[part],
            inverted=readings.filter_weight_sign == "inverted",
            keep_bias=readings.knockout_bias == "kept",
        )
        for part in subset.split(256)
    ]
    return class_filter_weights(torch.cat(weights), labels[subset], tasks.classes)


def source_attention(source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings) -> dict[str, Tensor]:
    """DELTA's channel weights of every regularised layer, on four batches of a replica's own images.

    The source's last layer is refitted to the target classes first, as DELTA does.
    """

    def of_replica(replica: int) -> list[Tensor]:
        network = refit_head(source, tasks, replica)
        subset = tasks.subsets[replica].to(tasks.device)
        wanted = min(_ATTENTION_BATCHES * settings.batch, len(subset))
        chosen = subset[torch.linspace(0, len(subset) - 1, wanted, device=tasks.device).long()]
        images = tasks.train.inputs(chosen, network.classifier.head.weight.dtype, tasks.augmentation)
        labels = tasks.train.labels[chosen]
        convolutions = network.regularised_convolutions()
        return [channel_attention(knockout_loss_increase(network, conv, images, labels)) for conv in convolutions]

    layers = zip(*(of_replica(r) for r in range(tasks.replicas)), strict=True)
    return {f"attention.{i}": torch.stack(layer) for i, layer in enumerate(layers)}


def frozen_copy(network: SplitClassifier) -> SplitClassifier:
    """A copy in evaluation mode whose parameters get no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


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
    head = nn.Linear(embedded.shape[1], tasks.classes).to(embedded)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
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


class SourceRegularizer:
    """α·Ω + β·½‖last layer‖² of a regularised training, one value per replica.

    Ω compares E's output (by the attention of its last convolution) and the tapped convolutions of C with the source's.
    """

    def __init__(self, source: SplitClassifier, measures: SourceMeasures, settings: DFGSettings) -> None:
        self.source = frozen_copy(source)
        self._settings = settings
        layers = range(len(source.regularised_convolutions()))
        self.attention = [measures[f"attention.{i}"].to(source.classifier.head.weight) for i in layers]

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


# Accuracies: logged during training, read from the history afterwards.


@torch.no_grad()
def predict(
    network: nn.Module, data: ResidentData, index: Tensor, augmentation: Augmentation | None, batch: int = 1000
) -> Int[Tensor, " n"]:
    """Predicted classes of the images at `index`, nothing random."""
    dtype = next(network.parameters()).dtype
    parts = [network(data.inputs(part, dtype, augmentation)).argmax(-1) for part in index.split(batch)]
    return torch.cat(parts) if parts else index[:0]


def log_accuracy(run: Run, step: int, networks: TargetNetworks, tasks: ReplicaTasks) -> None:
    """Log every replica's `<replica>/{test,held_out}/{top1_accuracy,macro_recall}`, in percent."""
    everything = torch.arange(len(tasks.test.labels), device=tasks.device)
    for r in range(tasks.replicas):
        network, values = networks.classify(r).eval(), {}
        held_out = tasks.held_out[r].to(tasks.device)
        for name, data, index in (("test", tasks.test, everything), ("held_out", tasks.train, held_out)):
            if len(index):
                predicted = predict(network, data, index, tasks.augmentation)
                confusion = confusion_counts(predicted, data.labels[index], tasks.classes)
                values[f"{r}/{name}/top1_accuracy"] = top1_accuracy(confusion).item()
                values[f"{r}/{name}/macro_recall"] = macro_recall(confusion).item()
        run.log(step, **values)


def log_losses(run: Run, step: int, losses: Mapping[str, Tensor]) -> None:
    """Log the last value of every loss, one number per replica, as `<replica>/loss/<name>`."""
    each = {name: values.tolist() for name, values in losses.items()}
    run.log(step, **{f"{r}/loss/{name}": value for name, values in each.items() for r, value in enumerate(values)})


def chosen_accuracies(
    history: Sequence[Mapping[str, int | float]], replica: int, equal_updates: int | None = None
) -> dict[str, dict[str, int | float]]:
    """Test accuracies under several ways of choosing the iterate, from the history `log_accuracy` wrote.

    Returns:
        `last`: the last iterate; `held_out`: the iterate with the best macro recall on held-out *training* images (the
        latest of equals; missing without a held-out part); `best_on_test`: the authors' convention, chosen on the
        test set and therefore optimistic; `equal_updates`: the iterate of the step `equal_updates`, missing where it
        was not evaluated. Each maps `top1_accuracy`, `macro_recall` and `step` to numbers.
    """
    names = {"step": "step", **{name: f"{replica}/test/{name}" for name in ("top1_accuracy", "macro_recall")}}
    rows = [row for row in history if names["top1_accuracy"] in row]
    if not rows:
        raise ValueError(f"the history has no test accuracy of replica {replica}")
    chosen = {"last": rows[-1], "best_on_test": max(rows, key=lambda row: row[names["top1_accuracy"]])}
    if (held_out := f"{replica}/held_out/macro_recall") in rows[0]:
        chosen["held_out"] = max(rows[::-1], key=lambda row: row[held_out])
    equal = [row for row in rows if row["step"] == equal_updates]
    chosen |= {"equal_updates": equal[0]} if equal else {}
    return {rule: {name: row[key] for name, key in names.items()} for rule, row in chosen.items()}
