"""Localisation metrics: MaxBoxAcc V1 and V2, GT-known, CorLoc, Top-1 and Top-5 Loc on `box_curves`, and PxAP.

"Benchmark" is Choe et al., Evaluating weakly supervised object localization methods right, CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from repro.metrics.boxes import (
    SIDE,
    BoxCurves,
    BoxRule,
    Comparison,
    FixedThreshold,
    Normalisation,
    OracleThreshold,
    ThresholdPolicy,
    ValidationThreshold,
    choose_threshold,
    iou_at,
    map_scores,
)
from repro.metrics.max_tree import N_BINS, count_scores


class LocalisationResult(NamedTuple):
    """A localisation accuracy with what is needed to read it."""

    value: float
    """Accuracy in percent, the mean over `ious`: all hits over all chances, one division of two integers. The error of
    the tables is 100 - value."""
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
    """100 / (n |δ|) · Σ over images and δ of [best IoU at τ(δ) >= δ], in percent (0..100).

    `policy` chooses τ per δ; `rule` and `comparison` say which boxes a mask yields and whether pixels equal
    to the threshold belong to it. Shards of any size may be merged: states are concatenated. A process
    without images calls `update` with empty curves, so that its states have the right shape.

    Raises:
        ValueError: a δ outside (0, 1]; from `compute`: no image was seen.

    Example:
        >>> half = BoxCurves(torch.full((1, 3, 257), 0.5), torch.tensor([255]))
        >>> metric = MaxBoxAccV2(); metric.update(half); round(metric.compute().value, 2)  # δ = 0.3 and 0.5 of three
        66.67
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
            value=100 * int(hits.sum()) / hits.size,
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
    """MaxBoxAcc V1 (benchmark, §3.3): box of the largest contour, δ = 0.5, best τ of the evaluated images; percent."""

    def __init__(self, policy: ThresholdPolicy | None = None, *, iou: float = 0.5) -> None:
        super().__init__(policy or OracleThreshold(), ious=(iou,), rule="largest")


class MaxBoxAccV2(BoxAccuracy):
    """MaxBoxAccV2 (benchmark, §3.3): boxes of all contours, mean over δ of the accuracy at its own best τ; percent."""

    def __init__(self, policy: ThresholdPolicy | None = None, *, ious: tuple[float, ...] = (0.3, 0.5, 0.7)) -> None:
        super().__init__(policy or OracleThreshold(), ious=ious, rule="all")


class GTKnownLoc(BoxAccuracy):
    """Share of images, in percent, whose box from the true class's map has IoU >= δ (EGA §4.1 calls it CorLoc)."""

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


# Pixel average precision (PxAP) of localisation maps against masks with ignore regions (benchmark, §3.3).

FOREGROUND, BACKGROUND, IGNORE = 1, 0, 255


def pixel_histograms(
    maps: Float[Tensor, "n h w"],
    masks: Integer[Tensor, "n s s"],
    *,
    normalisation: Normalisation = "minmax",
) -> Integer[Tensor, "n 2 1002"]:
    """Per image, how many foreground and background pixels score in each of the benchmark's 1002 bins.

    Maps are enlarged to the masks' side and normalised like for boxes; mask values are 1, 0 and 255
    (ignored). Raises ValueError for other mask values, sizes that do not match and maps that `map_scores` refuses.
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or len(maps) != len(masks):
        raise ValueError(f"masks has shape {tuple(masks.shape)}, expected ({len(maps)}, side, side)")
    if masks.numel() and not (int(masks.min()) >= 0 and int(masks.max()) <= IGNORE):
        raise ValueError(f"masks span [{masks.min()}, {masks.max()}], expected values 0, 1 and 255")
    scores = map_scores(maps.detach().cpu().numpy(), normalisation, masks.shape[1])
    labels = masks.detach().cpu().numpy().astype(np.uint8)
    counts = np.zeros((len(labels), 2, N_BINS), dtype=np.int64)
    for i, score in enumerate(scores):
        _, background, foreground, other = count_scores(score.ravel(), labels[i].ravel())
        if other.any():
            raise ValueError(f"masks[{i}] holds values other than 0, 1 and 255")
        counts[i] = foreground, background
    return torch.from_numpy(counts)


def average_precision(histograms: Integer[Tensor, "2 1002"]) -> float:
    """100 Σ precision · Δrecall from the highest score down: area under the precision–recall steps, in percent.

    Raises ValueError without foreground pixels, for which recall is undefined.

    Example:
        >>> counts = torch.zeros(2, 1002, dtype=torch.int64); counts[0, [900, 700]] = 1; counts[1, 800] = 1
        >>> round(average_precision(counts), 2)  # 1/2 · 1 + 1/2 · 2/3
        83.33
    """
    true, false = histograms.cpu().numpy()[:, ::-1].cumsum(axis=1).astype(np.float64)
    if true[-1] == 0:
        raise ValueError("no foreground pixel was counted, so PxAP is undefined; check the masks")
    counted = true + false
    precision = np.divide(true, counted, out=np.zeros_like(true), where=counted > 0)
    return float((precision[1:] * np.diff(true / true[-1])).sum() * 100)


def combine_masks(instances: Sequence[np.ndarray], ignore: np.ndarray | None, side: int = SIDE) -> Tensor:
    """One mask (side, side) of 1, 0 and 255 from instance masks and an ignore region of any sizes.

    Each is resized to the nearest pixel and cut at 0.5; the foreground wins over the ignore region. Raises ValueError
    without an instance.

    Example:
        >>> combine_masks([np.eye(2)], np.ones((2, 2)), side=2).tolist()
        [[1, 255], [255, 1]]
    """
    if not instances:
        raise ValueError("instances is empty, expected at least one mask")
    foreground = np.any([_nearest(mask, side) for mask in instances], axis=0)
    combined = np.where(foreground, FOREGROUND, BACKGROUND).astype(np.uint8)
    if ignore is not None:
        combined[_nearest(ignore, side) & ~foreground] = IGNORE
    return torch.from_numpy(combined)


def _nearest(mask: np.ndarray, side: int) -> np.ndarray:
    large = cv2.resize(np.asarray(mask, np.float64), (side, side), interpolation=cv2.INTER_NEAREST)
    return large > 0.5


class PxAP(Metric):
    """`average_precision` over the pixels of all images, in percent (benchmark, §3.3).

    `correct_only` counts correctly classified images alone: what EGA's released script does.

    Example:
        >>> metric = PxAP(); metric.update(torch.eye(2)[None], torch.eye(2, dtype=torch.int64)[None])
        >>> float(metric.compute())
        100.0
    """

    full_state_update = False
    histograms: Tensor

    def __init__(self, *, normalisation: Normalisation = "minmax", correct_only: bool = False) -> None:
        super().__init__()
        self.normalisation: Normalisation = normalisation
        self.correct_only = correct_only
        self.add_state("histograms", torch.zeros(2, N_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        maps: Float[Tensor, "n h w"],
        masks: Integer[Tensor, "n s s"],
        correct: Bool[Tensor, " n"] | None = None,
    ) -> None:
        """Add n maps with their masks (1, 0, 255 = ignored); `correct` is needed if `correct_only` is set."""
        if self.correct_only:
            if correct is None:
                raise ValueError("PxAP(correct_only=True) needs correct, a truth value per image")
            maps, masks = maps[correct.to(maps.device)], masks[correct.to(masks.device)]
        counts = pixel_histograms(maps, masks, normalisation=self.normalisation)
        self.histograms += counts.sum(0).to(self.histograms.device)

    def compute(self) -> Float[Tensor, ""]:
        """Percent, in [0, 100]; ValueError if no foreground pixel was seen."""
        return torch.tensor(average_precision(self.histograms), dtype=torch.float64)
