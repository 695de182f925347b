"""Faithfulness metrics of ScoreCAM++ (appendix A, §6.4) as `torchmetrics.Metric`.

Each keeps one number per image, because confidence intervals are paired bootstraps over images. States are
concatenated across processes; the order of images is then that of the ranks, the same for every metric.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class PerImageMetric(Metric):
    """Mean over images of one number (or one row of numbers) each; undefined numbers are NaN and left out."""

    is_differentiable = False
    full_state_update = False
    per_image: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("per_image", default=[], dist_reduce_fx="cat")

    def values(self) -> Float[Tensor, "n *methods"]:
        """The number of every image seen, over all processes, in the order of the updates.

        Raises:
            ValueError: nothing was seen yet.
        """
        with self.sync_context():
            return self._collected()

    def compute(self) -> Float[Tensor, "*methods"]:
        """Mean over the images where it is defined; NaN where it is for none."""
        return self._collected().nanmean(dim=0)

    def undefined(self) -> int:
        """How many of the numbers are undefined (NaN)."""
        return int(self.values().isnan().sum())

    def _collected(self) -> Tensor:
        if isinstance(self.per_image, list) and not self.per_image:
            raise ValueError(f"{type(self).__name__}: no image seen; call update() before asking for a result")
        return dim_zero_cat(self.per_image)

    def _append(self, numbers: Tensor) -> None:
        self.per_image.append(numbers.detach())


class AverageDrop(PerImageMetric):
    """Average Drop in % (equation 13, with the 1/N it forgets): mean of max(0, y − O) / y; lower is better.

    Undefined (NaN, left out, see `undefined`) where y ≤ 0: a logit may be, and a share of it has no meaning then.
    """

    higher_is_better = False

    def update(self, score: Float[Tensor, " n"], masked_score: Float[Tensor, " n"]) -> None:
        """Add images by their scores whole (y) and masked (O), in one space."""
        _check_pair(score, masked_score)
        drop = 100 * (score - masked_score).clamp(min=0) / score
        self._append(torch.where(score > 0, drop, torch.full_like(drop, torch.nan)))


class IncreaseInConfidence(PerImageMetric):
    """Increase in Confidence in % (equation 14): share of images with y < O, strictly; higher is better."""

    higher_is_better = True

    def update(self, score: Float[Tensor, " n"], masked_score: Float[Tensor, " n"]) -> None:
        """Add images by their scores whole (y) and masked (O), in one space."""
        _check_pair(score, masked_score)
        self._append(100 * (masked_score > score).to(score))


class AverageLogitDrop(PerImageMetric):
    """Average Drop in Logit (§6.4, Table 7): mean of y(X) − y(X∘(1−E)) in logits; higher is better.

    The paper gives no formula and its authors no code; this is the natural reading (digest scorecampp §3).
    """

    higher_is_better = True

    def update(self, score: Float[Tensor, " n"], removed_score: Float[Tensor, " n"]) -> None:
        """Add images by their logits whole and with the explained region removed (`region="removed"`)."""
        _check_pair(score, removed_score)
        self._append(score - removed_score)


class WinRate(PerImageMetric):
    """Win % (appendix A.3): share of images on which a method's masked score is the highest of all methods.

    All methods share y, so the highest masked score is the least drop.
    """

    higher_is_better = True

    def __init__(self, ties: Literal["split", "first"] = "split", tolerance: float = 1e-5) -> None:
        """See `FaithfulnessSettings.win_ties` and `win_tolerance`."""
        super().__init__()
        if ties not in ("split", "first"):
            raise ValueError(f"ties: {ties!r}; expected 'split' or 'first'")
        self.ties = ties
        self.tolerance = tolerance

    def update(self, masked_scores: Float[Tensor, "n methods"]) -> None:
        """Add images by the masked scores of all methods; a row of shares in % per image is kept."""
        best = masked_scores.amax(dim=1, keepdim=True)
        if self.ties == "first":
            winners = _first_true(masked_scores == best)
        else:
            winners = masked_scores >= best - self.tolerance * best.abs().clamp(min=1)
        self._append(100 * winners / winners.sum(dim=1, keepdim=True))


class PerImageMean(PerImageMetric):
    """Mean of numbers that were computed per image elsewhere."""

    def update(self, numbers: Float[Tensor, " n"]) -> None:
        """Add one number per image."""
        self._append(numbers)


class InsertionAUC(PerImageMean):
    """Area under the insertion curve (RISE), in score units; higher is better."""

    higher_is_better = True


class DeletionAUC(PerImageMean):
    """Area under the deletion curve (RISE), in score units; lower is better."""

    higher_is_better = False


class MeanMapArea(PerImageMean):
    """Mean of the mask, 0..1: the share of the image a map lets through. A control, neither good nor bad."""

    higher_is_better = None


def _first_true(flags: Bool[Tensor, "n methods"]) -> Bool[Tensor, "n methods"]:
    # argmax over equal values is free to return any of them.
    return flags & (flags.cumsum(dim=1) == 1)


def _check_pair(score: Tensor, masked_score: Tensor) -> None:
    if score.ndim != 1 or score.shape != masked_score.shape:
        raise ValueError(
            f"scores: shapes {tuple(score.shape)} and {tuple(masked_score.shape)}; expected one number per image in "
            "both (take the column of one method)"
        )
