"""DIFA+cMWGAN, the feature-augmentation baseline of Table 2: a declared reconstruction in three stages.

1. E and C are trained on the target from the source, all layers (`whole_transfer`).
2. E and C are frozen; a conditional WGAN-GP with mixture noise learns C's penultimate features. Real features are
   drawn class by class, so that minority classes are learned as often as majority ones.
3. Only the last layer of C is trained on, with half of every batch real and half generated with uniform labels.

Stages 2 and 3 take as many steps as stage 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.losses import classification_loss, critic_loss, generator_loss, gradient_penalty
from repro.models import SplitClassifier
from repro.models.embedding_gan import ConditionalCritic, MixtureNoiseGenerator
from repro.training.cuda_cycle import Cycle
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.optimisers import adam
from repro.training.replicas import ReplicaNetwork, build_replicas, gradient_step
from repro.training.run import Resumable, Run
from repro.training.sampling import Batch, CycleDraws, one_hot
from repro.training.supervised import RECIPES, ClassifierNetworks, build_supervised, fit_supervised
from repro.training.tasks import ReplicaTasks, log_accuracy

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
