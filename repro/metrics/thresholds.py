"""How the threshold τ of a localisation metric is chosen: stated, never implied.

Published numbers differ by more in their τ policy than in their method (digest: EGA §5), so a policy is an
argument of every metric and the τ used is part of every result.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repro.metrics.box_curves import BoxCurves, BoxRule, Comparison

THRESHOLDS = np.arange(0, 1, 0.001)
"""The benchmark's 1000 thresholds; they select at most 255 distinct masks of a map."""


@dataclass(frozen=True)
class FixedThreshold:
    """One τ in [0, 1), a fraction of the map's highest value; 0.2 is the CAM paper's (digest: EGA §5)."""

    value: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise ValueError(f"threshold is {self.value}, expected a fraction in [0, 1)")


@dataclass(frozen=True)
class OracleThreshold:
    """The τ that is best on the evaluated images themselves, per IoU: what the benchmark's MaxBoxAcc does."""


@dataclass(frozen=True)
class ValidationThreshold:
    """The τ that is best, for the same metric, on another set of images.

    `correct` marks the images whose class is right; Top-1 and Top-5 Loc need it, the other metrics do not look at it.
    """

    curves: BoxCurves
    correct: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        if len(self.curves) == 0:
            raise ValueError("the validation curves hold no image, so no threshold can be chosen on them")
        if self.correct is not None and len(self.correct) != len(self.curves):
            raise ValueError(f"correct has {len(self.correct)} entries for {len(self.curves)} validation images")


ThresholdPolicy = FixedThreshold | OracleThreshold | ValidationThreshold


def levels_at(thresholds: np.ndarray, peak: int) -> np.ndarray:
    """Grey level of each τ for a map of highest level `peak`: ⌊τ · peak⌋, in float64 like the benchmark."""
    return (thresholds * peak).astype(np.int64)


def iou_at(iou: Float[Tensor, "n 256"], peaks: Int[Tensor, " n"], threshold: float) -> Float[Tensor, " n"]:
    """Best IoU of each image at one τ."""
    levels = torch.tensor([int(threshold * int(peak)) for peak in peaks], dtype=torch.int64)
    return iou.gather(1, levels[:, None].to(iou.device))[:, 0]


def accuracies(
    iou: Float[Tensor, "n 256"], peaks: Int[Tensor, " n"], correct: Bool[Tensor, " n"], min_iou: float
) -> np.ndarray:
    """Share of images, in [0, 1], that are hits at each of `THRESHOLDS` (1000,).

    The comparison is made in float32, the precision of the curves, so that an IoU of exactly 7/10 passes 0.7.
    """
    hits = (iou >= torch.tensor(min_iou, dtype=torch.float32)) & correct[:, None]
    total = np.zeros(len(THRESHOLDS), dtype=np.int64)
    for peak in torch.unique(peaks).tolist():
        counts = hits[peaks == peak].sum(0).cpu().numpy()
        total += counts[levels_at(THRESHOLDS, peak)]
    return total / len(iou)


def choose_threshold(
    policy: ThresholdPolicy,
    iou: Float[Tensor, "n 256"],
    peaks: Int[Tensor, " n"],
    correct: Bool[Tensor, " n"],
    *,
    min_iou: float,
    rule: BoxRule,
    comparison: Comparison,
) -> float:
    """τ of a policy for one IoU; the lowest of equally good ones."""
    if isinstance(policy, FixedThreshold):
        return policy.value
    if isinstance(policy, ValidationThreshold):
        held_out = policy.curves
        iou, peaks = held_out.matrix(rule, comparison), held_out.peaks
        everything = torch.ones(len(held_out), dtype=torch.bool)
        correct = everything if policy.correct is None else policy.correct.bool()
    return float(THRESHOLDS[accuracies(iou, peaks, correct, min_iou).argmax()])
