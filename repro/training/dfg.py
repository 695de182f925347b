"""Discriminative feature generation: Algorithm 1, one function per update.

All networks carry a replica axis (`repro.training.replicas`); losses are one number per replica.

Two points of Algorithm 1 are read as follows. Lines 16 and 17 update E and C from one forward pass, at the same
point (the paper: "trained simultaneously"), and both see the gradient of both regularisers, as in DELTA and the
released code.
"Can be added" (Section 3.1) is read as: the regularisers are added in L_E and L_rC there, not in line 20.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repro.losses.dfg import (
    active_filters,
    blend_filter_weights,
    class_filter_weights,
    classification_loss,
    classifier_objective,
    critic_loss,
    generator_loss,
    gradient_penalty,
    sample_filter_weights,
)
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureDiscriminator, FeatureGenerator
from repro.models.split_classifier import SplitClassifier
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import Cycle, ReplicaNetwork, build_replicas, gradient_step
from repro.training.run_store import Resumable, Run
from repro.training.sampling import Batch, CycleDraws, one_hot
from repro.training.tasks import (
    ReplicaTasks,
    SourceRegularizer,
    adam,
    drop_learning_rate,
    frozen_copy,
    log_accuracy,
    network_optimiser,
    refit_head,
    target_start,
)

# Class-wise filter weights during DFG's training: W of source and target, and the W* the generator is given.


class FilterAttention:
    """W* of every replica (Algorithm 1, lines 2–4 and 21–25).

    Attributes:
        source: W(E_S), shape (R, classes, filters), mean 1 over filters.
        star: W* as the generator takes it; changed in place, so that a captured graph sees the change.
        history: every W that was computed: the source's first, then the target's at each update.
    """

    def __init__(
        self, source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings
    ) -> None:
        self._tasks, self._settings, self._readings = tasks, settings, readings
        refitted = readings.source_head == "refitted" or source.classes != tasks.classes
        self.source = self._measure(lambda r: refit_head(source, tasks, r) if refitted else frozen_copy(source))
        self.star = torch.zeros_like(self.source)
        self.history = [self.source]
        active = active_filters(self.source, readings.initial_threshold, readings.threshold_unit)
        self._set(range(tasks.replicas), self.source, active)

    def rows(self, labels: Int[Tensor, "r b"]) -> Float[Tensor, "r b f"]:
        """W*[ŷ] of every sample."""
        return self.star.gather(1, labels[..., None].expand(-1, -1, self.star.shape[-1]))

    def refresh(self, network: Callable[[int], SplitClassifier], losses: Float[Tensor, " r"]) -> None:
        """Lines 21–25: measure the target's weights and set W*.

        Args:
            network: gives the current C(E(·)) of a replica.
            losses: E's last loss per replica, for the released code's gate.
        """
        settings, readings = self._settings, self._readings
        target = self._measure(lambda r: frozen_copy(network(r)))
        self.history.append(target)
        used = target
        if readings.rho_blend == "blend":
            used = blend_filter_weights(self.source, target, settings.rho)
        tested = used if readings.threshold_on == "blend" else target
        active = active_filters(tested, settings.threshold, readings.threshold_unit)
        gate = readings.filter_update_gate
        open_for = [r for r in range(len(losses)) if gate is None or float(losses[r]) < gate]
        self._set(open_for, used, active)

    def state_dict(self) -> dict[str, Tensor]:
        """W* and the history, for checkpoints."""
        return {"star": self.star, "history": torch.stack(self.history)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore; W* in place."""
        self.star.copy_(state["star"])
        self.history = list(state["history"].to(self.star).unbind(0))

    def _set(self, replicas: range | list[int], weights: Tensor, active: Tensor) -> None:
        scale = 1.0 if self._readings.filter_weight_scale == "filters" else 1 / weights.shape[-1]
        for r in replicas:
            self.star[r] = scale * weights[r] * active[r]

    def _measure(self, network: Callable[[int], SplitClassifier]) -> Float[Tensor, "r k f"]:
        return torch.stack([self._class_weights(network(r), r) for r in range(self._tasks.replicas)])

    def _class_weights(self, network: SplitClassifier, replica: int) -> Float[Tensor, "k f"]:
        tasks, readings = self._tasks, self._readings
        subset = _first_per_class(tasks, replica, readings.filter_weight_images)
        dtype = network.classifier.head.weight.dtype
        weights = [
            sample_filter_weights(
                network.extractor,
                network.classifier,
                tasks.train.inputs(part, dtype, tasks.augmentation),
                tasks.train.labels[part],
                inverted=readings.filter_weight_sign == "inverted",
                keep_bias=readings.knockout_bias == "kept",
            )
            for part in subset.split(256)
        ]
        return class_filter_weights(torch.cat(weights), tasks.train.labels[subset], tasks.classes)


def _first_per_class(tasks: ReplicaTasks, replica: int, limit: int | None) -> Tensor:
    subset = tasks.subsets[replica].to(tasks.device)
    if limit is None:
        return subset
    labels = tasks.train.labels[subset]
    return torch.cat([subset[labels == c][:limit] for c in range(tasks.classes)])


@dataclass(eq=False)
class DFGNetworks:
    """The four networks, their optimisers, and what is taken from the source."""

    extractor: ReplicaNetwork
    classifier: ReplicaNetwork
    generator: ReplicaNetwork
    critic: ReplicaNetwork
    extractor_optimiser: torch.optim.Optimizer
    classifier_optimiser: torch.optim.Optimizer
    generator_optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer
    attention: FilterAttention
    regularizer: SourceRegularizer
    losses: dict[str, Tensor]
    """Last value of every loss, one number per replica; written in place."""

    def generate(self, batch: Batch) -> Tensor:
        """G(z, ŷ, W*[ŷ]) of shape (R, batch, f, p, q)."""
        labels = batch.generated_labels
        return self.generator(
            batch.noise,
            one_hot(labels, self.attention.star.shape[1], batch.noise.dtype),
            self.attention.rows(labels),
        )

    def classify(self, replica: int) -> SplitClassifier:
        """A plain copy of C(E(·)) of one replica."""
        extractor, classifier = self.extractor.network(replica), self.classifier.network(replica)
        return SplitClassifier(extractor, classifier, frozen=())  # type: ignore[arg-type]

    @property
    def all_networks(self) -> dict[str, ReplicaNetwork]:
        """By the names results are stored under."""
        return {
            "extractor": self.extractor,
            "classifier": self.classifier,
            "generator": self.generator,
            "critic": self.critic,
        }

    @property
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """By network."""
        return {
            "extractor_optimiser": self.extractor_optimiser,
            "classifier_optimiser": self.classifier_optimiser,
            "generator_optimiser": self.generator_optimiser,
            "critic_optimiser": self.critic_optimiser,
        }


def update_critic(nets: DFGNetworks, batch: Batch, settings: DFGSettings) -> None:
    """Line 9, eq. (1): one step of D."""
    with torch.no_grad():
        real = nets.extractor(batch.images)
        generated = nets.generate(batch)
    penalty = gradient_penalty(nets.critic, real, generated, batch.mixing)
    scores_real, scores_generated = nets.critic(torch.cat([real, generated], dim=1)).chunk(2, dim=1)
    loss = critic_loss(scores_real, scores_generated, penalty, settings.penalty)
    gradient_step(loss, [nets.critic], [nets.critic_optimiser])
    nets.losses["critic"].copy_(loss.detach())
    nets.losses["penalty"].copy_(penalty.detach())


def update_generator(nets: DFGNetworks, batch: Batch) -> None:
    """Line 12, eq. (2): one step of G against D."""
    loss = generator_loss(nets.critic(nets.generate(batch)))
    gradient_step(loss, [nets.generator], [nets.generator_optimiser])
    nets.losses["generator"].copy_(loss.detach())


def update_generator_on_classes(nets: DFGNetworks, batch: Batch) -> None:
    """Lines 14 and 15, eq. (4c): one step of G towards features that C classifies as ŷ."""
    with torch.no_grad():
        real = nets.extractor(batch.images)
    merged = torch.cat([real, nets.generate(batch)], dim=1)
    labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
    loss = classification_loss(nets.classifier(merged), labels)
    gradient_step(loss, [nets.generator], [nets.generator_optimiser])
    nets.losses["generator_classes"].copy_(loss.detach())


def update_extractor_and_classifier(nets: DFGNetworks, batch: Batch, readings: DFGReadings) -> None:
    """Lines 16 and 17, eqs. (3) and (4a): one step of E and of C on real data, with the transfer regularisers."""
    features = nets.extractor(batch.images)
    logits, maps = nets.classifier(features, method="with_maps")
    loss = classification_loss(logits, batch.labels)
    penalty = nets.regularizer(batch.images, features, maps, nets.classifier)
    gradient_step(
        readings.real_loss_count * loss + penalty,
        [nets.extractor, nets.classifier],
        [nets.extractor_optimiser, nets.classifier_optimiser],
    )
    nets.losses["real"].copy_(loss.detach())
    nets.losses["regularizer"].copy_(penalty.detach())


def update_classifier(nets: DFGNetworks, batch: Batch, settings: DFGSettings) -> None:
    """Lines 19 and 20, eq. (4): one step of C on real, generated and merged features."""
    with torch.no_grad():
        real, generated = nets.extractor(batch.images), nets.generate(batch)
    merged_labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
    on_real = classification_loss(nets.classifier(real), batch.labels)
    on_generated = classification_loss(nets.classifier(generated), batch.generated_labels)
    merged = classification_loss(nets.classifier(torch.cat([real, generated], dim=1)), merged_labels)
    loss = classifier_objective(on_real, on_generated, merged, settings.objective)
    gradient_step(loss, [nets.classifier], [nets.classifier_optimiser])
    nets.losses["generated"].copy_(on_generated.detach())


def update_cycle(nets: DFGNetworks, draws: CycleDraws, settings: DFGSettings, readings: DFGReadings) -> None:
    """Lines 5–20 for one cycle of steps: the part of Algorithm 1 that runs without the host."""
    for step in range(1, settings.cycle + 1):
        for t in range(settings.critic_updates):  # line 6
            update_critic(nets, draws.batch(step - 1, t), settings)
        batch = draws.batch(step - 1, settings.critic_updates)  # lines 10 and 11
        update_generator(nets, batch)
        if step % settings.classes_every == 0:  # line 13
            update_generator_on_classes(nets, batch)
            update_extractor_and_classifier(nets, batch, readings)
        if step % settings.merged_every == 0:  # line 18
            update_classifier(nets, batch, settings)


def train_dfg(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, run: Run
) -> dict[str, Tensor]:
    """Train R replicas with Algorithm 1.

    Args:
        source: the pre-trained C_S(E_S(·)), its sizes those of `settings.architecture` under `readings`.
        tasks: data, subsets and seeds; its device is where training happens.
        settings: schedule and coefficients.
        readings: choices where paper and released code leave or make one.
        run: progress, checkpoints and log.

    Returns:
        `<replica>/<network>.<name>` for extractor, classifier, generator and critic, and `filter_weights` of shape
        (updates + 1, R, classes, filters): W of the source first, then the target's at each update, and
        `filter_weights_star` (R, classes, filters), the final W*.
    """
    nets = build_networks(source, tasks, settings, readings)  # lines 1–4
    draws = dfg_draws(tasks, settings, readings, nets.attention.star.dtype)
    play = Cycle(
        lambda: update_cycle(nets, draws, settings, readings),
        list(nets.all_networks.values()),
        list(nets.optimisers.values()),
        tasks.device,
    )
    state: dict[str, Resumable] = {**nets.all_networks, **nets.optimisers, "attention": nets.attention}
    for cycle in run.steps(settings.iterations // settings.cycle, state=state, name="dfg"):
        step = (cycle + 1) * settings.cycle
        draws.load(cycle)
        play()
        if step % settings.filter_weights_every == 0:  # lines 21–25
            nets.attention.refresh(nets.classify, nets.losses["real"])
        if settings.evaluate_after(cycle):
            log_losses(run, step, nets.losses)
            log_accuracy(run, step, nets.extractor, nets.classifier, tasks)
        if drop_learning_rate(settings, step, nets.extractor_optimiser, nets.classifier_optimiser):
            play.forget()
    return collect(nets.all_networks, tasks.replicas) | {
        "filter_weights": torch.stack(nets.attention.history),
        "filter_weights_star": nets.attention.star,
    }


def build_networks(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings
) -> DFGNetworks:
    """Lines 1–4: E and C from the source, fresh G and D per seed, filter weights of the source."""
    device, dtype = tasks.device, source.classifier.head.weight.dtype
    source = source.to(device)
    starts = [target_start(source, tasks.classes, seed) for seed in tasks.seeds]
    extractor = ReplicaNetwork([start.extractor for start in starts])
    classifier = ReplicaNetwork([start.classifier for start in starts])
    generator, critic = _build_gan(tasks, settings, readings, dtype)
    losses = ("critic", "penalty", "generator", "generator_classes", "real", "regularizer", "generated")
    return DFGNetworks(
        extractor,
        classifier,
        generator,
        critic,
        network_optimiser(settings, extractor, device),
        network_optimiser(settings, classifier, device),
        adam(generator, settings.generator_lr, device),
        adam(critic, settings.critic_lr, device),
        FilterAttention(source, tasks, settings, readings),
        SourceRegularizer(source, tasks, settings),
        {name: torch.zeros(tasks.replicas, device=device, dtype=dtype) for name in losses},
    )


def _build_gan(
    tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, dtype: torch.dtype
) -> tuple[ReplicaNetwork, ReplicaNetwork]:
    shape = FEATURE_GAN_SHAPES[settings.architecture]

    def generator() -> nn.Module:
        return FeatureGenerator(
            shape,
            tasks.classes,
            readings.critic_slope,
            readings.filter_weight_position,
            readings.generator_order,
            readings.convolution_bias,
        ).to(dtype)

    def critic() -> nn.Module:
        return FeatureDiscriminator(shape, readings.critic_slope, readings.convolution_bias).to(dtype)

    return (
        ReplicaNetwork(build_replicas(generator, [2 * seed for seed in tasks.seeds], tasks.device)),
        ReplicaNetwork(build_replicas(critic, [2 * seed + 1 for seed in tasks.seeds], tasks.device)),
    )


def dfg_draws(tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings, dtype: torch.dtype) -> CycleDraws:
    """The draws of Algorithm 1: n_D critic batches and one for everything else, per step."""
    return CycleDraws(
        tasks.train,
        tasks.subsets,
        tasks.seeds,
        tasks.classes,
        steps=settings.cycle,
        slots=settings.critic_updates + 1,
        batch=settings.batch,
        noise=FEATURE_GAN_SHAPES[settings.architecture].noise,
        augmentation=tasks.augmentation,
        critic_batches=readings.critic_batches,
        dtype=dtype,
    )


def log_losses(run: Run, step: int, losses: dict[str, Tensor]) -> None:
    """Log the last value of every loss as `<replica>/loss/<name>`."""
    values = {
        f"{r}/loss/{name}": value
        for name, per_replica in losses.items()
        for r, value in enumerate(per_replica.tolist())
    }
    run.log(step, **values)


def collect(networks: dict[str, ReplicaNetwork], replicas: int | Sequence[int]) -> dict[str, Tensor]:
    """`<replica>/<network>.<name>` → tensor, as stored with a result."""
    chosen = range(replicas) if isinstance(replicas, int) else replicas
    return {
        f"{r}/{label}.{name}": value
        for r in chosen
        for label, network in networks.items()
        for name, value in network.replica_state(r).items()
    }
