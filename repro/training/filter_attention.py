"""Class-wise filter weights during DFG's training: W of source and target, and the W* the generator is given."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repro.losses import active_filters, blend_filter_weights, class_filter_weights, sample_filter_weights
from repro.models import SplitClassifier
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.tasks import ReplicaTasks
from repro.training.transfer import frozen_copy, refit_head


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
