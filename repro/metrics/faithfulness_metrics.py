"""Faithfulness metrics of ScoreCAM++ (appendix A, §6.4) as `torchmetrics.Metric`.

Each keeps one number per image, because confidence intervals are paired bootstraps over images. States are
concatenated across processes; the order of images is then that of the ranks, the same for every metric.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from repro.data.images import Normalisation
from repro.metrics.faithfulness import (
    Background,
    background_of,
    predict,
    require_evaluation_mode,
    require_normalised,
    score_in_batches,
    upsample,
)
from repro.models.class_scores import ClassScores, ScoreSpace, resolve_target


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

    The paper gives no formula and its authors no code; this is the natural reading (docs/papers/scorecampp.md §3).
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


# Insertion and deletion curves (Petsiuk et al., RISE, 2018): the class score while pixels appear or vanish by rank.


class InsertionDeletionSettings(BaseModel):
    """Choices of the two curves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_space: ScoreSpace = "probability"
    """RISE's curves are probabilities."""
    steps: int = Field(default=20, ge=1)
    """Intervals of the curve; RISE changes 224 pixels (of 224²) at a time, which is 224."""
    insertion_background: Background = "blur"
    """What pixels are inserted into; RISE uses the blurred image, since mean-coloured ground adds edges."""
    deletion_background: Background = "mean"
    """What deleted pixels become; RISE uses zeros in the normalised image."""


@dataclass(frozen=True)
class InsertionDeletionCurves:
    """Scores of `n` images and `m` methods after each step.

    Attributes:
        fractions: share of pixels inserted or deleted, from 0 to 1.
        insertion: starts at the background's score and ends at the image's.
        deletion: the other way round.
    """

    fractions: Float[Tensor, " points"]
    insertion: Float[Tensor, "n m points"]
    deletion: Float[Tensor, "n m points"]

    @property
    def insertion_auc(self) -> Float[Tensor, "n m"]:
        """Area under the insertion curve (trapezoids), in score units; higher is better."""
        return torch.trapezoid(self.insertion, self.fractions, dim=2)

    @property
    def deletion_auc(self) -> Float[Tensor, "n m"]:
        """Area under the deletion curve (trapezoids), in score units; lower is better."""
        return torch.trapezoid(self.deletion, self.fractions, dim=2)


def insertion_deletion_curves(
    model: nn.Module,
    inputs: Float[Tensor, "n 3 height width"],
    maps: Float[Tensor, "n m h w"],
    target: Int[Tensor, " n"] | None,
    settings: InsertionDeletionSettings,
    *,
    normalisation: Normalisation | None = None,
    batch_size: int = 32,
) -> InsertionDeletionCurves:
    """Both curves for `m` methods, 2·(steps + 1) forward passes per image and method.

    Pixels are ranked by the bilinearly upsampled map, highest first; equal ones row by row (stable sort), so that
    the result does not depend on the machine.

    Args:
        model: in evaluation mode; returns logits `(n, classes)`.
        inputs: normalised images.
        maps: raw maps of any resolution; only their order matters.
        target: the class explained; None takes the predicted one.
        settings: see there.
        normalisation: what made `inputs`; only a `black` background needs it.
        batch_size: images per forward pass.

    Raises:
        ValueError: a model in training mode, inputs that are not floats, another number of maps than of inputs, maps
            that are not finite, more steps than pixels.
    """
    require_evaluation_mode(model)
    require_normalised(inputs, maps)
    pixels = inputs.shape[2] * inputs.shape[3]
    if settings.steps > pixels:
        raise ValueError(f"steps: {settings.steps} for {pixels} pixels; expected at most one step per pixel")
    classes = resolve_target(target, predict(model, inputs, batch_size))
    ranks = pixel_ranks(maps.to(inputs.device).float(), (inputs.shape[2], inputs.shape[3]))
    counts = torch.linspace(0, pixels, settings.steps + 1, device=inputs.device).round().long()

    def curve(start: Tensor, end: Tensor) -> Float[Tensor, "n m points"]:
        scores = _path_scores(model, start, end, ranks, counts, classes, batch_size)
        return scores.in_space(settings.score_space)

    blank = background_of(inputs, settings.insertion_background, normalisation)
    deleted = background_of(inputs, settings.deletion_background, normalisation)
    return InsertionDeletionCurves(counts / pixels, insertion=curve(blank, inputs), deletion=curve(inputs, deleted))


def pixel_ranks(maps: Float[Tensor, "n m h w"], size: tuple[int, int]) -> Int[Tensor, "n m height width"]:
    """Rank of every pixel of the upsampled map: 0 for the highest value; ties in row-major order."""
    ready = upsample(maps, size)
    order = ready.flatten(2).argsort(dim=2, descending=True, stable=True)
    places = torch.arange(order.shape[2], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(2, order, places).view_as(ready)


def _path_scores(
    model: nn.Module,
    start: Float[Tensor, "n 3 h w"],
    end: Float[Tensor, "n 3 h w"],
    ranks: Int[Tensor, "n m h w"],
    counts: Int[Tensor, " points"],
    target: Int[Tensor, " n"],
    batch_size: int,
) -> ClassScores:
    """Scores of images whose first `counts` pixels by rank are of `end` and the others of `start`; (n, m, points)."""
    images, methods, points = ranks.shape[0], ranks.shape[1], len(counts)
    flat = ranks.flatten(0, 1)

    def compose(index: Int[Tensor, " k"]) -> Float[Tensor, "k 3 h w"]:
        row, step = index // points, index % points
        changed = (flat[row] < counts[step, None, None])[:, None]
        return torch.where(changed, end[row // methods], start[row // methods])

    scores = score_in_batches(model, compose, target.repeat_interleave(methods * points), batch_size)
    shape = (images, methods, points)
    return ClassScores(scores.logit.view(shape), scores.probability.view(shape), scores.classes)
