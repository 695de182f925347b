"""The methods of Table 2 that train on real data alone, two re-weighting controls, and source pre-training.

What the paper leaves open is declared here: every method takes `settings.iterations` steps of E and C with DFG's
optimiser and learning rate, so that only the method differs. (DFG itself updates E and C on real data every n_C1-th
step.)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from repro.losses.dfg import (
    class_balanced_weights,
    classification_loss,
    critic_loss,
    generator_loss,
    gradient_penalty,
    inverse_frequency_weights,
)
from repro.models.feature_gan import ConditionalCritic, MixtureNoiseGenerator
from repro.models.split_classifier import SplitClassifier
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import Cycle, ReplicaNetwork, build_replicas, gradient_step
from repro.training.run_store import Resumable, Run
from repro.training.sampling import Batch, CycleDraws, one_hot
from repro.training.tasks import (
    ReplicaTasks,
    SourceRegularizer,
    adam,
    build_classifier,
    drop_learning_rate,
    log_accuracy,
    network_optimiser,
    target_start,
)

SupervisedMethod = Literal["original", "fine_tuning", "delta", "reweighting", "class_balanced", "whole_transfer"]


@dataclass(frozen=True)
class Recipe:
    """How one method differs from plain training."""

    from_source: bool = True
    """Start from the source network instead of random weights."""
    freeze_early: bool = False
    """Keep everything before the last convolution block fixed (`SplitClassifier.frozen`)."""
    regularised: bool = False
    """Add DELTA's regulariser."""
    class_weights: Literal["none", "inverse_frequency", "effective_number"] = "none"
    """Weights of the cross-entropy by class."""


RECIPES: dict[SupervisedMethod, Recipe] = {
    "original": Recipe(from_source=False),
    "fine_tuning": Recipe(freeze_early=True),
    "delta": Recipe(regularised=True),
    "reweighting": Recipe(class_weights="inverse_frequency"),
    "class_balanced": Recipe(class_weights="effective_number"),
    "whole_transfer": Recipe(),
}
"""`whole_transfer`, all layers trained from the source without any regulariser, is the first stage of DIFA+cMWGAN
and the reference for the two re-weighting controls."""


@dataclass(eq=False)
class ClassifierNetworks:
    """E and C of R replicas with their optimisers (none for a network that is wholly frozen)."""

    extractor: ReplicaNetwork
    classifier: ReplicaNetwork
    optimisers: list[torch.optim.Optimizer]
    class_weights: Tensor | None = None
    regularizer: SourceRegularizer | None = None

    @property
    def trained(self) -> list[ReplicaNetwork]:
        """The networks that have something to train."""
        return [network for network in (self.extractor, self.classifier) if network.trainable]


def update_on_real_data(nets: ClassifierNetworks, batch: Batch, loss_out: Tensor) -> None:
    """One step of E and C on a batch of real data."""
    features = nets.extractor(batch.images)
    if nets.regularizer is None:
        loss = classification_loss(nets.classifier(features), batch.labels, nets.class_weights)
        penalty = torch.zeros_like(loss)
    else:
        logits, maps = nets.classifier(features, method="with_maps")
        loss = classification_loss(logits, batch.labels, nets.class_weights)
        penalty = nets.regularizer(batch.images, features, maps, nets.classifier)
    gradient_step(loss + penalty, nets.trained, nets.optimisers)
    loss_out.copy_(loss.detach())


def train_supervised(
    method: SupervisedMethod,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    run: Run,
) -> dict[str, Tensor]:
    """Train R replicas with one supervised method.

    Args:
        method: see `RECIPES`.
        source: the pre-trained network; unused by `original`.
        tasks, settings, readings, run: as in `train_dfg`.

    Returns:
        `<replica>/<network>.<name>` → tensor for extractor and classifier.
    """
    nets = build_supervised(RECIPES[method], source, tasks, settings, readings)
    fit_supervised(nets, tasks, settings, run, name=method)
    return {
        f"{r}/{label}.{name}": value
        for r in range(tasks.replicas)
        for label, network in (("extractor", nets.extractor), ("classifier", nets.classifier))
        for name, value in network.replica_state(r).items()
    }


def fit_supervised(nets: ClassifierNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run, name: str) -> None:
    """The loop of `train_supervised` on networks that exist already."""
    dtype = nets.classifier.parameters["head.weight"].dtype
    loss = torch.zeros(tasks.replicas, device=tasks.device, dtype=dtype)
    draws = CycleDraws(
        tasks.train,
        tasks.subsets,
        tasks.seeds,
        tasks.classes,
        steps=settings.cycle,
        slots=1,
        batch=settings.batch,
        noise=0,
        augmentation=tasks.augmentation,
        dtype=loss.dtype,
    )

    def updates() -> None:
        for step in range(settings.cycle):
            update_on_real_data(nets, draws.batch(step, 0), loss)

    play = Cycle(updates, [nets.extractor, nets.classifier], nets.optimisers, tasks.device)
    state = {"extractor": nets.extractor, "classifier": nets.classifier}
    optimisers = {f"optimiser{i}": optimiser for i, optimiser in enumerate(nets.optimisers)}
    for cycle in run.steps(settings.iterations // settings.cycle, state={**state, **optimisers}, name=name):
        draws.load(cycle)
        play()
        step = (cycle + 1) * settings.cycle
        if settings.evaluate_after(cycle):
            run.log(step, **{f"{r}/loss/real": value for r, value in enumerate(loss.tolist())})
            log_accuracy(run, step, nets.extractor, nets.classifier, tasks)
        if drop_learning_rate(settings, step, *nets.optimisers):
            play.forget()


def build_supervised(
    recipe: Recipe,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
) -> ClassifierNetworks:
    """Initialised networks, optimisers, class weights and regulariser of one recipe."""
    dtype = source.classifier.head.weight.dtype
    if recipe.from_source:
        starts = [target_start(source.to(tasks.device), tasks.classes, seed) for seed in tasks.seeds]
    else:
        starts = fresh_classifiers(tasks, settings, readings, dtype)
    frozen = starts[0].frozen if recipe.freeze_early else ()
    extractor = ReplicaNetwork([s.extractor for s in starts], _below("extractor.", frozen))
    classifier = ReplicaNetwork([s.classifier for s in starts], _below("classifier.", frozen))
    optimisers = [
        network_optimiser(settings, network, tasks.device) for network in (extractor, classifier) if network.trainable
    ]
    return ClassifierNetworks(
        extractor,
        classifier,
        optimisers,
        _class_weights(recipe, tasks, dtype),
        SourceRegularizer(source, tasks, settings) if recipe.regularised else None,
    )


def fresh_classifiers(
    tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, dtype: torch.dtype
) -> list[SplitClassifier]:
    """One randomly initialised classifier per seed."""

    def build() -> SplitClassifier:
        return build_classifier(settings.architecture, tasks.classes, readings).to(dtype)

    return build_replicas(build, tasks.seeds, tasks.device)


def pretrain_source(tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, run: Run) -> dict[str, Tensor]:
    """Train a source network from scratch; `tasks` holds the source data, one replica per source seed.

    Returns the tensors of `train_supervised`; `load_source` makes a network of them.
    """
    fresh = fresh_classifiers(tasks, settings, readings, torch.float32)[0]
    return train_supervised("original", fresh, tasks, settings, readings, run)


def load_source(
    tensors: dict[str, Tensor], settings: DFGSettings, readings: DFGReadings, replica: int = 0
) -> SplitClassifier:
    """The classifier of one replica from stored tensors, in evaluation mode."""
    prefix = f"{replica}/"
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    state = {name: value for name, value in state.items() if name.startswith(("extractor.", "classifier."))}
    if "classifier.head.weight" not in state:
        raise ValueError(f"the tensors hold no classifier of replica {replica}; stored: {sorted(tensors)[:5]} …")
    network = build_classifier(settings.architecture, len(state["classifier.head.weight"]), readings)
    network.load_state_dict(state)
    return network.eval()


def _below(part: str, prefixes: tuple[str, ...]) -> list[str]:
    return [prefix.removeprefix(part) for prefix in prefixes if prefix.startswith(part)]


def _class_weights(recipe: Recipe, tasks: ReplicaTasks, dtype: torch.dtype) -> Tensor | None:
    if recipe.class_weights == "none":
        return None
    counts = tasks.class_counts()
    if recipe.class_weights == "inverse_frequency":
        return inverse_frequency_weights(counts).to(dtype)
    return class_balanced_weights(counts).to(dtype)


# DIFA+cMWGAN, the feature-augmentation baseline of Table 2: a declared reconstruction in three stages.
#
# 1. E and C are trained on the target from the source, all layers (`whole_transfer`).
# 2. E and C are frozen; a conditional WGAN-GP with mixture noise learns C's penultimate features. Real features are
#    drawn class by class, so that minority classes are learned as often as majority ones.
# 3. Only the last layer of C is trained on, with half of every batch real and half generated with uniform labels.
#
# Stages 2 and 3 take as many steps as stage 1.

_NOISE = 100


@dataclass(eq=False)
class EmbeddingGAN:
    """Generator and critic of R replicas with their optimisers."""

    generator: ReplicaNetwork
    critic: ReplicaNetwork
    generator_optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer
    classes: int

    def labels(self, labels: Tensor, noise: Tensor) -> Tensor:
        """One-hot labels in the dtype of the noise."""
        return one_hot(labels, self.classes, noise.dtype)


def update_embedding_critic(gan: EmbeddingGAN, nets: ClassifierNetworks, batch: Batch, penalty: float) -> None:
    """One step of D: real and generated features of the same labels."""
    labels = gan.labels(batch.labels, batch.noise)
    with torch.no_grad():
        real = embed(nets, batch)
        generated = gan.generator(batch.noise, labels)
    slope = gradient_penalty(lambda x: gan.critic(x, labels), real, generated, batch.mixing)
    loss = critic_loss(gan.critic(real, labels), gan.critic(generated, labels), slope, penalty)
    gradient_step(loss, [gan.critic], [gan.critic_optimiser])


def update_embedding_generator(gan: EmbeddingGAN, batch: Batch) -> None:
    """One step of G against D, labels uniform."""
    labels = gan.labels(batch.generated_labels, batch.noise)
    loss = generator_loss(gan.critic(gan.generator(batch.noise, labels), labels))
    gradient_step(loss, [gan.generator], [gan.generator_optimiser])


def update_head(
    gan: EmbeddingGAN, head: ReplicaNetwork, optimiser: torch.optim.Optimizer, features: Tensor, batch: Batch
) -> None:
    """One step of C's last layer on real and generated features."""
    with torch.no_grad():
        generated = gan.generator(batch.noise, gan.labels(batch.generated_labels, batch.noise))
    merged = torch.cat([features, generated], dim=1)
    labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
    gradient_step(classification_loss(head(merged), labels), [head], [optimiser])


def embed(nets: ClassifierNetworks, batch: Batch) -> Tensor:
    """Penultimate features of the real images, without gradient."""
    with torch.no_grad():
        return nets.classifier(nets.extractor(batch.images), method="embed")


def train_cmwgan(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, run: Run
) -> dict[str, Tensor]:
    """Train R replicas of the baseline; arguments as in `train_dfg`.

    Returns:
        `<replica>/<network>.<name>` → tensor for extractor, classifier and generator.
    """
    nets = build_supervised(RECIPES["whole_transfer"], source, tasks, settings, readings)
    fit_supervised(nets, tasks, settings, run, name="transfer")
    nets.extractor.train(False)
    nets.classifier.train(False)
    gan = _build_gan(nets, tasks, settings)
    _fit_gan(gan, nets, tasks, settings, run)
    _fit_head(gan, nets, tasks, settings, run)
    networks = {"extractor": nets.extractor, "classifier": nets.classifier, "generator": gan.generator}
    return {
        f"{r}/{label}.{name}": value
        for r in range(tasks.replicas)
        for label, network in networks.items()
        for name, value in network.replica_state(r).items()
    }


def _fit_gan(gan: EmbeddingGAN, nets: ClassifierNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run) -> None:
    draws = _draws(tasks, settings, nets, slots=settings.critic_updates + 1, balanced=True)

    def updates() -> None:
        for step in range(settings.cycle):
            for t in range(settings.critic_updates):
                update_embedding_critic(gan, nets, draws.batch(step, t), settings.penalty)
            update_embedding_generator(gan, draws.batch(step, settings.critic_updates))

    optimisers = [gan.generator_optimiser, gan.critic_optimiser]
    play = Cycle(updates, [gan.generator, gan.critic], optimisers, tasks.device)
    state: dict[str, Resumable] = {
        "generator": gan.generator,
        "critic": gan.critic,
        "generator_optimiser": gan.generator_optimiser,
        "critic_optimiser": gan.critic_optimiser,
    }
    for cycle in run.steps(settings.iterations // settings.cycle, state=state, name="gan"):
        draws.load(cycle)
        play()


def _fit_head(
    gan: EmbeddingGAN, nets: ClassifierNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run
) -> None:
    gan.generator.train(False)
    heads: list[nn.Module] = [nets.classifier.network(r).head for r in range(tasks.replicas)]  # type: ignore[misc]
    head = ReplicaNetwork(heads)
    optimiser = adam(head, settings.network_lr, tasks.device)
    draws = _draws(tasks, settings, nets, slots=1, balanced=False)

    def updates() -> None:
        for step in range(settings.cycle):
            batch = draws.batch(step, 0)
            update_head(gan, head, optimiser, embed(nets, batch), batch)

    play = Cycle(updates, [head], [optimiser], tasks.device)
    for cycle in run.steps(settings.iterations // settings.cycle, {"head": head, "optimiser": optimiser}, "head"):
        draws.load(cycle)
        play()
        if settings.evaluate_after(cycle):
            _put_head(nets.classifier, head)
            step = settings.iterations + (cycle + 1) * settings.cycle
            log_accuracy(run, step, nets.extractor, nets.classifier, tasks)
    _put_head(nets.classifier, head)


def _put_head(classifier: ReplicaNetwork, head: ReplicaNetwork) -> None:
    with torch.no_grad():
        for name, value in head.parameters.items():
            classifier.parameters[f"head.{name}"].copy_(value)


def _build_gan(nets: ClassifierNetworks, tasks: ReplicaTasks, settings: DFGSettings) -> EmbeddingGAN:
    weight = nets.classifier.parameters["head.weight"]
    features = weight.shape[-1]

    def generator() -> nn.Module:
        return MixtureNoiseGenerator(features, tasks.classes, _NOISE).to(weight.dtype)

    def critic() -> nn.Module:
        return ConditionalCritic(features, tasks.classes).to(weight.dtype)

    g = ReplicaNetwork(build_replicas(generator, [2 * seed for seed in tasks.seeds], tasks.device))
    d = ReplicaNetwork(build_replicas(critic, [2 * seed + 1 for seed in tasks.seeds], tasks.device))
    return EmbeddingGAN(
        g,
        d,
        adam(g, settings.generator_lr, tasks.device),
        adam(d, settings.critic_lr, tasks.device),
        tasks.classes,
    )


def _draws(
    tasks: ReplicaTasks, settings: DFGSettings, nets: ClassifierNetworks, slots: int, balanced: bool
) -> CycleDraws:
    return CycleDraws(
        tasks.train,
        tasks.subsets,
        tasks.seeds,
        tasks.classes,
        steps=settings.cycle,
        slots=slots,
        batch=settings.batch,
        noise=_NOISE,
        augmentation=tasks.augmentation,
        real_classes="balanced" if balanced else "as_they_are",
        dtype=nets.classifier.parameters["head.weight"].dtype,
    )
