"""Discriminative feature generation: Algorithm 1, one function per update; `train_method` for every method.

All networks carry a replica axis (`repro.training.replicas`); losses are one number per replica.

Lines 16 and 17 update E and C from one forward pass. "Can be added" (Section 3.1) is read as: the regularisers are
added in L_E and L_rC there, not in line 20.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repro.losses.dfg import (
    active_filters,
    blend_filter_weights,
    classification_loss,
    classifier_objective,
    critic_gradients,
    generator_loss,
)
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureDiscriminator, FeatureGenerator
from repro.models.split_classifier import SplitClassifier
from repro.training.baselines import train_cmwgan, train_supervised
from repro.training.dfg_settings import RECIPES, DFGReadings, DFGSettings, Recipe
from repro.training.replicas import (
    Cycle,
    ReplicaNetwork,
    build_replicas,
    descend,
    replicas_that_fit,
    resumable,
    step,
    stored_tensors,
)
from repro.training.run_store import Run
from repro.training.sampling import CycleDraws, ReplicaBatch, ReplicaTasks, one_hot
from repro.training.transfer import (
    SourceMeasures,
    TargetNetworks,
    adam,
    filter_weights,
    frozen_copy,
    log_accuracy,
    log_losses,
    measure_source,
    target_networks,
)
from repro.vocabulary import DFGMethod

LOSSES = {
    "critic": "critic (1)",
    "penalty": "gradient penalty in (1)",
    "generator": "generator (2)",
    "generator_classes": "generator on classes (4c)",
    "real": "E and C, real (3, 4a)",
    "regularizer": "DELTA regulariser",
    "generated": "C on generated (4b)",
}
"""Logged losses with the equations they are."""


class FilterAttention:
    """Class-wise filter weights of every replica during training (Algorithm 1, lines 2–4 and 21–25).

    Attributes:
        source: W(E_S), shape (R, classes, filters), mean 1 over filters.
        star: W* as the generator takes it; changed in place, so that a captured graph sees the change.
        history: every W that was computed: the source's first, then the target's at each update.
    """

    def __init__(
        self, source: Float[Tensor, "r k f"], tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings
    ) -> None:
        self._tasks, self._settings, self._readings = tasks, settings, readings
        self.source = source.to(tasks.device)
        self.star = torch.zeros_like(self.source)
        self.history = [self.source]
        active = active_filters(self.source, readings.initial_threshold, readings.threshold_unit)
        self._set(range(tasks.replicas), self.source, active)

    def rows(self, labels: Int[Tensor, "r b"]) -> Float[Tensor, "r b f"]:
        """W*[ŷ] of every sample."""
        return self.star.gather(1, labels[..., None].expand(-1, -1, self.star.shape[-1]))

    def refresh(self, network: Callable[[int], SplitClassifier], losses: Float[Tensor, " r"]) -> None:
        """Lines 21–25: measure W of the current C(E(·)) and set W*, by the released code's gate on E's last losses."""
        settings, readings, tasks = self._settings, self._readings, self._tasks
        own = [filter_weights(frozen_copy(network(r)), tasks, r, readings) for r in range(tasks.replicas)]
        target = used = torch.stack(own)
        self.history.append(target)
        if readings.rho_blend == "blend":
            used = blend_filter_weights(self.source, target, settings.rho)
        tested = used if readings.threshold_on == "blend" else target
        active = active_filters(tested, settings.threshold, readings.threshold_unit)
        gate = readings.filter_update_gate
        self._set([r for r in range(len(losses)) if gate is None or float(losses[r]) < gate], used, active)

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


@dataclass(eq=False)
class DFGNetworks:
    """The four networks in training, W*, and the last value of every loss (one number per replica, in place)."""

    target: TargetNetworks
    generator: ReplicaNetwork
    critic: ReplicaNetwork
    attention: FilterAttention
    losses: dict[str, Tensor]

    @property
    def every(self) -> dict[str, ReplicaNetwork]:
        """By the names results are stored under."""
        target = {"extractor": self.target.extractor, "classifier": self.target.classifier}
        return target | {"generator": self.generator, "critic": self.critic}

    def generate(self, batch: ReplicaBatch) -> Tensor:
        """G(z, ŷ, W*[ŷ]) of shape (R, batch, f, p, q)."""
        labels = batch.generated_labels
        classes = one_hot(labels, self.attention.star.shape[1], batch.noise.dtype)
        return self.generator(batch.noise, classes, self.attention.rows(labels))

    def note(self, **losses: Tensor) -> None:
        """Keep the last value of some losses."""
        for name, value in losses.items():
            self.losses[name].copy_(value.detach())


@torch.no_grad()
def update_critic(nets: DFGNetworks, batch: ReplicaBatch, settings: DFGSettings) -> None:
    """Line 9, eq. (1): one step of D."""
    real, generated = nets.target.extractor(batch.images), nets.generate(batch)
    gradients = partial(critic_gradients, coefficient=settings.penalty)
    by_name, loss, penalty = nets.critic.apply(gradients, real, generated, batch.mixing)
    step([nets.critic], {nets.critic.parameters[name]: value for name, value in by_name.items()})
    nets.note(critic=loss, penalty=penalty)


def update_generator(nets: DFGNetworks, batch: ReplicaBatch) -> None:
    """Line 12, eq. (2): one step of G against D."""
    loss = generator_loss(nets.critic(nets.generate(batch)))
    descend(loss, nets.generator)
    nets.note(generator=loss)


def update_generator_on_classes(nets: DFGNetworks, batch: ReplicaBatch) -> None:
    """Lines 14 and 15, eq. (4c): one step of G towards features that C classifies as ŷ."""
    with torch.no_grad():
        real = nets.target.extractor(batch.images)
    merged = torch.cat([real, nets.generate(batch)], dim=1)
    labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
    loss = classification_loss(nets.target.classifier(merged), labels)
    descend(loss, nets.generator)
    nets.note(generator_classes=loss)


def update_extractor_and_classifier(nets: DFGNetworks, batch: ReplicaBatch, readings: DFGReadings) -> None:
    """Lines 16 and 17, eqs. (3) and (4a): one step of E and of C on real data, with the transfer regularisers."""
    loss, penalty = nets.target.step(batch, readings.real_loss_count)
    nets.note(real=loss, regularizer=penalty)


def update_classifier(nets: DFGNetworks, batch: ReplicaBatch, settings: DFGSettings) -> None:
    """Lines 19 and 20, eq. (4): one step of C on real, generated and merged features; class weights on real ones."""
    classify = nets.target.classifier
    with torch.no_grad():
        real, generated = nets.target.extractor(batch.images), nets.generate(batch)
    merged_labels = torch.cat([batch.labels, batch.generated_labels], dim=1)
    on_real = classification_loss(classify(real), batch.labels, nets.target.class_weights)
    on_generated = classification_loss(classify(generated), batch.generated_labels)
    merged = classification_loss(classify(torch.cat([real, generated], dim=1)), merged_labels)
    descend(classifier_objective(on_real, on_generated, merged, settings.objective), classify)
    nets.note(generated=on_generated)


def update_cycle(nets: DFGNetworks, draws: CycleDraws, settings: DFGSettings, readings: DFGReadings) -> None:
    """Lines 5–20 for one cycle of steps: the part of Algorithm 1 that runs without the host."""
    for number in range(1, settings.cycle + 1):
        for t in range(settings.critic_updates):  # line 6
            update_critic(nets, draws.batch(number - 1, t), settings)
        batch = draws.batch(number - 1, settings.critic_updates)  # lines 10 and 11
        update_generator(nets, batch)
        if number % settings.classes_every == 0:  # line 13
            update_generator_on_classes(nets, batch)
            update_extractor_and_classifier(nets, batch, readings)
        if number % settings.merged_every == 0:  # line 18
            update_classifier(nets, batch, settings)


def train_dfg(
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    run: Run,
    recipe: Recipe = RECIPES["dfg"],
    measures: SourceMeasures | None = None,
) -> dict[str, Tensor]:
    """Train R replicas with Algorithm 1; arguments as in `train_method`.

    Returns:
        `<replica>/<network>.<name>` for extractor, classifier, generator and critic, `filter_weights` of shape
        (updates + 1, R, classes, filters): W of the source first, then the target's at each update, and
        `filter_weights_star` (R, classes, filters), the final W*.

    Raises:
        ValueError: the schedule ends before the filter weights are updated once.
    """
    if settings.filter_weights_every > settings.iterations:
        raise ValueError(
            f"filter_weights_every={settings.filter_weights_every} never happens in {settings.iterations} iterations; "
            "lower it"
        )
    nets = build_networks(source, tasks, settings, readings, recipe, measures)  # lines 1–4
    play = dfg_cycle(nets, tasks, settings, readings)
    state = {**resumable(nets.every), "attention": nets.attention}
    for cycle in run.steps(settings.iterations // settings.cycle, state=state, name="dfg"):
        play(cycle)
        done = (cycle + 1) * settings.cycle
        if done % settings.filter_weights_every == 0:  # lines 21–25
            nets.attention.refresh(nets.target.classify, nets.losses["real"])
        if settings.evaluate_after(cycle):
            log_losses(run, done, nets.losses)
            log_accuracy(run, done, nets.target, tasks)
        if done == settings.network_lr_drop:
            play.divide_learning_rates(10)
    weights = {"filter_weights": torch.stack(nets.attention.history), "filter_weights_star": nets.attention.star}
    return stored_tensors(nets.every) | weights


def build_networks(
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    recipe: Recipe = RECIPES["dfg"],
    measures: SourceMeasures | None = None,
) -> DFGNetworks:
    """Lines 1–4: E and C from the source, fresh G and D per seed, filter weights of the source."""
    device = tasks.device
    source = source.to(device)
    measures = measure_source(source, tasks, settings, readings, recipe) if measures is None else measures
    target = target_networks(recipe, source, tasks, settings, readings, measures)
    shape = FEATURE_GAN_SHAPES[settings.architecture]

    def generator() -> FeatureGenerator:
        return build_generator(settings, readings, tasks.classes).to(target.dtype)

    def critic() -> FeatureDiscriminator:
        return FeatureDiscriminator(shape, readings.critic_slope, readings.convolution_bias).to(target.dtype)

    generators = build_replicas(generator, [2 * seed for seed in tasks.seeds], device)
    critics = build_replicas(critic, [2 * seed + 1 for seed in tasks.seeds], device)
    return DFGNetworks(
        target,
        ReplicaNetwork(generators, optimise=adam(settings.generator_lr, device)),
        ReplicaNetwork(critics, optimise=adam(settings.critic_lr, device)),
        FilterAttention(measures["filter_weights"].to(target.dtype), tasks, settings, readings),
        {name: torch.zeros(tasks.replicas, device=device, dtype=target.dtype) for name in LOSSES},
    )


def build_generator(settings: DFGSettings, readings: DFGReadings, classes: int) -> FeatureGenerator:
    """A fresh generator with the layer sizes of the architecture, as the readings have it."""
    return FeatureGenerator(
        FEATURE_GAN_SHAPES[settings.architecture],
        classes,
        readings.critic_slope,
        readings.filter_weight_position,
        readings.generator_order,
        readings.convolution_bias,
    )


def dfg_cycle(nets: DFGNetworks, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings) -> Cycle:
    """One cycle of Algorithm 1 with its draws: n_D critic batches and one for everything else, per step."""
    draws = CycleDraws(
        tasks,
        steps=settings.cycle,
        slots=settings.critic_updates + 1,
        batch=settings.batch,
        noise=FEATURE_GAN_SHAPES[settings.architecture].noise,
        critic_batches=readings.critic_batches,
        dtype=nets.target.dtype,
    )
    return Cycle(partial(update_cycle, nets, draws, settings, readings), list(nets.every.values()), draws)


# Every method of Table 2 and the controls behind one function, and how many replicas of it to train at once.


def train_method(
    method: DFGMethod,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    run: Run,
    measures: SourceMeasures | None = None,
) -> dict[str, Tensor]:
    """Train R replicas with one method.

    Args:
        method: see `RECIPES`.
        source: the pre-trained C_S(E_S(·)), its sizes those of `settings.architecture` under `readings`; `original`
            takes nothing but the number type from it.
        tasks: data, subsets and seeds; its device is where training happens.
        settings: schedule and coefficients.
        readings: choices where paper and released code leave or make one.
        run: progress, checkpoints and log.
        measures: those of `measure_source` for these replicas; None measures them here.

    Returns:
        `<replica>/<network>.<name>` → tensor for extractor and classifier; DFG has more, see `train_dfg`.
    """
    recipe = RECIPES[method]
    if recipe.generates == "features":
        return train_dfg(source, tasks, settings, readings, run, recipe, measures)
    if recipe.generates == "embeddings":
        return train_cmwgan(source, tasks, settings, readings, run)
    return train_supervised(recipe, source, tasks, settings, readings, run, measures)


def group_size(
    source: SplitClassifier, one: ReplicaTasks, wanted: int, settings: DFGSettings, readings: DFGReadings
) -> int:
    """How many of `wanted` trainings to do at once: one on a CPU or with dropout, else what memory holds.

    Memory is measured with one cycle of DFG, the most expensive method, on the single task `one`.
    """
    if readings.dropout and settings.architecture == "vgg16_32":
        return 1

    def trial() -> None:
        dfg_cycle(build_networks(source, one, settings, readings), one, settings, readings)(0)

    return replicas_that_fit(wanted, trial, one.device)
