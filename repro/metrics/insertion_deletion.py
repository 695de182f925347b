"""Insertion and deletion curves (Petsiuk et al., RISE, 2018): the class score while pixels appear or vanish by rank."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from repro.data.normalisation import Normalisation
from repro.metrics.faithfulness import upsample
from repro.metrics.scoring import (
    Background,
    ClassScores,
    ScoreSpace,
    background_of,
    predict,
    require_evaluation_mode,
    require_normalised,
    resolve_target,
    score_in_batches,
)


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
    return ClassScores(scores.logit.view(shape), scores.probability.view(shape))
