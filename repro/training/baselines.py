"""Methods without DFG's generator: trainings on real data alone, source pre-training, and DIFA+cMWGAN.

What the paper leaves open is declared here: every method takes `settings.iterations` steps of E and C with DFG's
optimiser and learning rate, so that only the method differs. (DFG itself updates E and C on real data every n_C1-th
step.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.losses.dfg import classification_loss, critic_loss, generator_loss, gradient_penalty
from repro.models.feature_gan import ConditionalCritic, MixtureNoiseGenerator
from repro.models.split_classifier import SplitClassifier, split_classifier
from repro.training.dfg_settings import RECIPES, DFGReadings, DFGSettings, Recipe
from repro.training.replicas import Cycle, ReplicaNetwork, build_replicas, descend, resumable, stored_tensors
from repro.training.run_store import Run
from repro.training.sampling import CycleDraws, RealClasses, ReplicaBatch, ReplicaTasks, one_hot
from repro.training.transfer import (
    SourceMeasures,
    TargetNetworks,
    adam,
    fresh_classifiers,
    log_accuracy,
    log_losses,
    network_optimiser,
    target_networks,
)


def train_supervised(
    recipe: Recipe,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    run: Run,
    measures: SourceMeasures | None = None,
) -> dict[str, Tensor]:
    """Train R replicas on real data alone; arguments and result as in `train_method`."""
    nets = target_networks(recipe, source, tasks, settings, readings, measures)
    fit_supervised(nets, tasks, settings, run, name="real")
    return stored_tensors({"extractor": nets.extractor, "classifier": nets.classifier})


def fit_supervised(nets: TargetNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run, name: str) -> None:
    """The loop of `train_supervised` on networks that exist already."""
    loss = torch.zeros(tasks.replicas, device=tasks.device, dtype=nets.dtype)
    draws = CycleDraws(tasks, steps=settings.cycle, slots=1, batch=settings.batch, dtype=nets.dtype)

    def updates() -> None:
        for step in range(settings.cycle):
            loss.copy_(nets.step(draws.batch(step, 0))[0])

    networks = {"extractor": nets.extractor, "classifier": nets.classifier}
    play = Cycle(updates, list(networks.values()), draws)
    for cycle in run.steps(settings.iterations // settings.cycle, state=resumable(networks), name=name):
        play(cycle)
        step = (cycle + 1) * settings.cycle
        if settings.evaluate_after(cycle):
            log_losses(run, step, {"real": loss})
            log_accuracy(run, step, nets, tasks)
        if step == settings.network_lr_drop:
            play.divide_learning_rates(10)


def pretrain_source(tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, run: Run) -> dict[str, Tensor]:
    """Train a source network from scratch; `tasks` holds the source data, one replica per source seed.

    Returns the tensors of `train_supervised`; `load_source` makes a network of them.
    """
    fresh = fresh_classifiers(tasks, settings, readings, torch.float32)[0]
    return train_supervised(RECIPES["original"], fresh, tasks, settings, readings, run)


def load_source(tensors: dict[str, Tensor], settings: DFGSettings, readings: DFGReadings) -> SplitClassifier:
    """The classifier of the first replica from stored tensors, in evaluation mode."""
    parts = ("extractor.", "classifier.")
    state = {name.removeprefix("0/"): value for name, value in tensors.items() if name.startswith("0/")}
    state = {name: value for name, value in state.items() if name.startswith(parts)}
    if "classifier.head.weight" not in state:
        raise ValueError(f"the tensors hold no classifier of replica 0; stored: {sorted(tensors)[:5]} …")
    classes = len(state["classifier.head.weight"])
    network = split_classifier(settings.architecture, classes, readings.hidden, readings.dropout)
    network.load_state_dict(state)
    return network.eval()


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
    """Generator and critic of penultimate features, R replicas."""

    generator: ReplicaNetwork
    critic: ReplicaNetwork
    classes: int

    def generate(self, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Generated features and their one-hot labels."""
        labels = one_hot(labels, self.classes, noise.dtype)
        return self.generator(noise, labels), labels

    def step_critic(self, real: Tensor, batch: ReplicaBatch, penalty: float) -> None:
        """One step of D: real and generated features of the same labels."""
        with torch.no_grad():
            generated, labels = self.generate(batch.labels, batch.noise)
        slope = gradient_penalty(lambda x: self.critic(x, labels), real, generated, batch.mixing)
        loss = critic_loss(self.critic(real, labels), self.critic(generated, labels), slope, penalty)
        descend(loss, self.critic)

    def step_generator(self, batch: ReplicaBatch) -> None:
        """One step of G against D, labels uniform."""
        generated, labels = self.generate(batch.generated_labels, batch.noise)
        descend(generator_loss(self.critic(generated, labels)), self.generator)

    def step_head(self, head: ReplicaNetwork, real: Tensor, batch: ReplicaBatch) -> None:
        """One step of C's last layer on real and generated features."""
        with torch.no_grad():
            generated, _ = self.generate(batch.generated_labels, batch.noise)
        labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
        descend(classification_loss(head(torch.cat([real, generated], dim=1)), labels), head)


def train_cmwgan(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, run: Run
) -> dict[str, Tensor]:
    """Train R replicas of the baseline; arguments and result as in `train_method`."""
    nets = target_networks(RECIPES["whole_transfer"], source, tasks, settings, readings)
    fit_supervised(nets, tasks, settings, run, name="transfer")
    nets.extractor.train(False)
    nets.classifier.train(False)
    gan = _build_gan(nets, tasks, settings)
    _fit_gan(gan, nets, tasks, settings, run)
    _fit_head(gan, nets, tasks, settings, run)
    return stored_tensors({"extractor": nets.extractor, "classifier": nets.classifier})


def _build_gan(nets: TargetNetworks, tasks: ReplicaTasks, settings: DFGSettings) -> EmbeddingGAN:
    features, device = nets.classifier.parameters["head.weight"].shape[-1], tasks.device

    def generator() -> MixtureNoiseGenerator:
        return MixtureNoiseGenerator(features, tasks.classes, _NOISE).to(nets.dtype)

    def critic() -> ConditionalCritic:
        return ConditionalCritic(features, tasks.classes).to(nets.dtype)

    generators = build_replicas(generator, [2 * seed for seed in tasks.seeds], device)
    critics = build_replicas(critic, [2 * seed + 1 for seed in tasks.seeds], device)
    return EmbeddingGAN(
        ReplicaNetwork(generators, optimise=adam(settings.generator_lr, device)),
        ReplicaNetwork(critics, optimise=adam(settings.critic_lr, device)),
        tasks.classes,
    )


def _fit_gan(gan: EmbeddingGAN, nets: TargetNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run) -> None:
    draws = _draws(nets, tasks, settings, settings.critic_updates + 1, "balanced")

    def updates() -> None:
        for step in range(settings.cycle):
            for t in range(settings.critic_updates):
                batch = draws.batch(step, t)
                gan.step_critic(nets.embed(batch.images), batch, settings.penalty)
            gan.step_generator(draws.batch(step, settings.critic_updates))

    networks = {"generator": gan.generator, "critic": gan.critic}
    play = Cycle(updates, list(networks.values()), draws)
    for cycle in run.steps(settings.iterations // settings.cycle, state=resumable(networks), name="gan"):
        play(cycle)


def _fit_head(gan: EmbeddingGAN, nets: TargetNetworks, tasks: ReplicaTasks, settings: DFGSettings, run: Run) -> None:
    gan.generator.train(False)
    heads = [nets.classify(r).classifier.head for r in range(tasks.replicas)]
    head = ReplicaNetwork(heads, optimise=network_optimiser(settings, tasks.device))
    draws = _draws(nets, tasks, settings, 1, "as_they_are")

    def updates() -> None:
        for step in range(settings.cycle):
            batch = draws.batch(step, 0)
            gan.step_head(head, nets.embed(batch.images), batch)

    play = Cycle(updates, [head], draws)
    for cycle in run.steps(settings.iterations // settings.cycle, state=resumable({"head": head}), name="head"):
        play(cycle)
        if settings.evaluate_after(cycle):
            _put_head(nets.classifier, head)
            log_accuracy(run, settings.iterations + (cycle + 1) * settings.cycle, nets, tasks)
        if (cycle + 1) * settings.cycle == settings.network_lr_drop:
            play.divide_learning_rates(10)
    _put_head(nets.classifier, head)


def _put_head(classifier: ReplicaNetwork, head: ReplicaNetwork) -> None:
    with torch.no_grad():
        for name, value in head.parameters.items():
            classifier.parameters[f"head.{name}"].copy_(value)


def _draws(
    nets: TargetNetworks, tasks: ReplicaTasks, settings: DFGSettings, slots: int, real: RealClasses
) -> CycleDraws:
    steps, batch = settings.cycle, settings.batch
    return CycleDraws(tasks, steps=steps, slots=slots, batch=batch, noise=_NOISE, real_classes=real, dtype=nets.dtype)
