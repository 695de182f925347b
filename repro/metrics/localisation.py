"""Box localisation metrics on `box_curves`: MaxBoxAcc V1 and V2, GT-known, CorLoc, Top-1 and Top-5 Loc."""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from repro.metrics.box_curves import BoxCurves, BoxRule, Comparison
from repro.metrics.thresholds import (
    FixedThreshold,
    OracleThreshold,
    ThresholdPolicy,
    ValidationThreshold,
    choose_threshold,
    iou_at,
)


class LocalisationResult(NamedTuple):
    """A localisation accuracy with what is needed to read it."""

    value: float
    """Accuracy in percent: the mean over `ious`. The error of the tables is 100 - value."""
    ious: tuple[float, ...]
    thresholds: tuple[float, ...]
    """τ used for each IoU."""
    policy: str
    rule: BoxRule
    n: int
    hits: np.ndarray
    """1 or 0 per image and IoU (n, len(ious)), in the order of the updates; resample its rows for
    intervals."""


class BoxAccuracy(Metric):
    """Share of images with a predicted box of IoU >= δ with a true box, averaged over the δ given.

    `policy` chooses τ per δ; `rule` and `comparison` say which boxes a mask yields and whether pixels equal
    to the threshold belong to it. Shards of any size may be merged: states are concatenated. A process
    without images calls `update` with empty curves, so that its states have the right shape.
    """

    full_state_update = False
    asks_class: ClassVar[bool] = False
    """Whether a hit needs the right class, too, and so does the choice of τ on a validation set."""
    iou: list[Tensor]
    peaks: list[Tensor]
    correct: list[Tensor]

    def __init__(
        self,
        policy: ThresholdPolicy,
        *,
        ious: tuple[float, ...] = (0.5,),
        rule: BoxRule = "largest",
        comparison: Comparison = ">",
    ) -> None:
        super().__init__()
        if not ious or not all(0 < iou <= 1 for iou in ious):
            raise ValueError(f"ious is {ious}, expected one or more fractions in (0, 1]")
        self.policy, self.ious, self.rule, self.comparison = policy, ious, rule, comparison
        for name in ("iou", "peaks", "correct"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, curves: BoxCurves) -> None:
        """Add the curves of n images."""
        self._append(curves, torch.ones(len(curves), dtype=torch.bool))

    def compute(self) -> LocalisationResult:
        """Accuracy, τ and hits over all images; ValueError if there are none."""
        # States are lists of batches, or single tensors after a synchronisation.
        if len(self.iou) == 0 or len(dim_zero_cat(self.iou)) == 0:
            raise ValueError(f"{type(self).__name__} has seen no images; call update() first")
        iou, peaks, correct = (dim_zero_cat(state).cpu() for state in (self.iou, self.peaks, self.correct))
        columns, used = [], []
        policy = self.policy
        if isinstance(policy, ValidationThreshold) and not self.asks_class:
            policy = replace(policy, correct=None)
        for min_iou in self.ious:
            tau = choose_threshold(
                policy, iou, peaks, correct, min_iou=min_iou, rule=self.rule, comparison=self.comparison
            )
            used.append(tau)
            overlap = iou_at(iou, peaks, tau)
            columns.append((overlap >= torch.tensor(min_iou, dtype=torch.float32)) & correct)
        hits = torch.stack(columns, dim=1).numpy()
        return LocalisationResult(
            value=float(hits.mean(axis=0).mean() * 100),
            ious=self.ious,
            thresholds=tuple(used),
            policy=type(self.policy).__name__,
            rule=self.rule,
            n=len(hits),
            hits=hits,
        )

    def _append(self, curves: BoxCurves, correct: Tensor) -> None:
        self.iou.append(curves.matrix(self.rule, self.comparison).to(self.device))
        self.peaks.append(curves.peaks.to(self.device))
        self.correct.append(correct.bool().to(self.device))


class MaxBoxAcc(BoxAccuracy):
    """MaxBoxAcc V1 of the benchmark: box of the largest contour, δ = 0.5, best τ of the evaluated images."""

    def __init__(self, policy: ThresholdPolicy | None = None, *, iou: float = 0.5) -> None:
        super().__init__(policy or OracleThreshold(), ious=(iou,), rule="largest")


class MaxBoxAccV2(BoxAccuracy):
    """MaxBoxAccV2 of the benchmark: boxes of all contours, mean over δ of the accuracy at its own best τ."""

    def __init__(self, policy: ThresholdPolicy | None = None, *, ious: tuple[float, ...] = (0.3, 0.5, 0.7)) -> None:
        super().__init__(policy or OracleThreshold(), ious=ious, rule="all")


class GTKnownLoc(BoxAccuracy):
    """Share of images whose box, from the map of the true class, has IoU >= δ (EGA §4.1 calls it CorLoc)."""

    def __init__(
        self,
        policy: ThresholdPolicy | None = None,
        *,
        iou: float = 0.5,
        rule: BoxRule = "largest",
        comparison: Comparison = ">",
    ) -> None:
        super().__init__(policy or FixedThreshold(), ious=(iou,), rule=rule, comparison=comparison)


CorLoc = GTKnownLoc


class Top1Loc(GTKnownLoc):
    """Share of images with the right class *and* the right box; `correct` says whose top-1 class is right.

    Maps are those of the true class: where the class is right they are those of the predicted class too.
    """

    asks_class = True

    def update(self, curves: BoxCurves, correct: Bool[Tensor, " n"]) -> None:  # type: ignore[override]
        """Add the curves of n images and whether the class of each is right."""
        if correct.shape != (len(curves),):
            raise ValueError(f"correct has shape {tuple(correct.shape)}, expected ({len(curves)},)")
        self._append(curves, correct)

    def compute(self) -> LocalisationResult:
        """As `BoxAccuracy.compute`; ValueError if a validation policy lacks its `correct`."""
        if isinstance(self.policy, ValidationThreshold) and self.policy.correct is None:
            raise ValueError(f"{type(self).__name__} needs ValidationThreshold(curves, correct=…)")
        return super().compute()


class Top5Loc(Top1Loc):
    """As `Top1Loc`, with `correct` telling whether the true class is among the five most probable."""
