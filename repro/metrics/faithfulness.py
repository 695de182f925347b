"""Explanation maps as masks, and the scores a network gives to the masked images (ScoreCAM++, appendix A and §6.4).

One call scores several methods in both score spaces; the metrics of `faithfulness_metrics` take it from there.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from repro.data.normalisation import Normalisation
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
    select_class,
)

CONSTANT_RELATIVE_SPAN = 1e-6
"""A map whose values span less than this share of their size is constant: interpolation alone makes as much noise."""


class FaithfulnessSettings(BaseModel):
    """Every choice that Average Drop and its relatives leave open (digest scorecampp §3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_space: ScoreSpace = "probability"
    """The paper says probability; its released code and printed numbers are logits (digest §0, row 2)."""
    background: Background = "mean"
    """What replaces hidden pixels. The released code multiplies the normalised tensor, which is `mean`."""
    normalise: Literal["fullres", "lowres"] = "fullres"
    """Min–max after upsampling to the image, or at the resolution the map is given in and upsampled afterwards (its
    maximum is then below 1). The released code does the latter for Grad-CAM and Grad-CAM++ only. The two coincide
    for maps that are already of the image's size."""
    keep: float | None = Field(default=None, gt=0, le=1)
    """Share of pixels kept, the others are set to zero; 0.5 in Score-CAM's paper. None: the whole map."""
    win_ties: Literal["split", "first"] = "split"
    """Win %: methods that tie share the win, or the first of the list takes it (released code)."""
    win_tolerance: float = Field(default=1e-5, ge=0)
    """Scores this near to the best one (relative to it where it exceeds 1) tie with it: identical maps computed in
    two ways (Grad-CAM and XGrad-CAM on a pooled head) differ by rounding. Used with `split` only."""


@dataclass(frozen=True)
class ExplanationMaps:
    """Maps that are ready to be multiplied with images.

    Attributes:
        masks: 0..1, at the size of the images.
        constant: True where the map had no contrast; it became all ones if positive, all zeros otherwise.
    """

    masks: Float[Tensor, "n m h w"]
    constant: Bool[Tensor, "n m"]


@dataclass(frozen=True)
class ExplanationScores:
    """What `explanation_scores` measured for `n` images and `m` methods.

    Attributes:
        target: the class explained.
        original: scores of the whole images, shape `(n,)`.
        masked: scores of the masked images, shape `(n, m)`.
        area: mean of the mask, 0..1.
        constant: True where the map had no contrast (see `ExplanationMaps`); report how many there were.
    """

    target: Int[Tensor, " n"]
    original: ClassScores
    masked: ClassScores
    area: Float[Tensor, "n m"]
    constant: Bool[Tensor, "n m"]


def upsample(maps: Float[Tensor, "n m h w"], size: tuple[int, int]) -> Float[Tensor, "n m height width"]:
    """Resize maps bilinearly (pixel centres, not corners, aligned) to `size` = (height, width).

    Raises:
        ValueError: a value is NaN or infinite.
    """
    finite = maps.isfinite().flatten(2).all(dim=2)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise ValueError(f"maps: {bad} of {finite.numel()} hold NaN or infinity; mend the explainer that made them")
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)


def min_max(maps: Float[Tensor, "n m h w"]) -> ExplanationMaps:
    """Scale each map to 0..1; a constant one becomes all ones where it is positive, else all zeros."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    span = high - low
    constant = span <= CONSTANT_RELATIVE_SPAN * torch.maximum(low.abs(), high.abs())
    scaled = (maps - low) / torch.where(constant, torch.ones_like(span), span)
    return ExplanationMaps(torch.where(constant, (high > 0).to(maps), scaled), constant[..., 0, 0])


def explanation_maps(
    maps: Float[Tensor, "n m h w"], size: tuple[int, int], settings: FaithfulnessSettings
) -> ExplanationMaps:
    """Turn raw maps of any resolution into masks of `size` = (height, width) as `settings` say.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if settings.normalise == "fullres":
        ready = min_max(upsample(maps, size))
    else:
        low = min_max(maps)
        # Interpolating ones makes values just below one; a constant map stays what it is.
        flat = low.masks[:, :, :1, :1].expand(-1, -1, *size)
        ready = ExplanationMaps(
            torch.where(low.constant[..., None, None], flat, upsample(low.masks, size)), low.constant
        )
    if settings.keep is None:
        return ready
    return ExplanationMaps(keep_largest(ready.masks, settings.keep), ready.constant)


def keep_largest(masks: Float[Tensor, "n m h w"], share: float) -> Float[Tensor, "n m h w"]:
    """Zero all but the `share` (0..1) largest pixels, rounded up; among equals the earlier one (row by row) stays."""
    flat = masks.flatten(2)
    order = flat.argsort(dim=2, descending=True, stable=True)[..., : math.ceil(share * flat.shape[2])]
    kept = torch.zeros_like(flat).scatter(2, order, flat.gather(2, order))
    return kept.view_as(masks)


def explanation_scores(
    model: nn.Module,
    inputs: Float[Tensor, "n 3 height width"],
    maps: Float[Tensor, "n m h w"],
    target: Int[Tensor, " n"] | None,
    settings: FaithfulnessSettings,
    *,
    normalisation: Normalisation | None = None,
    region: Literal["kept", "removed"] = "kept",
    batch_size: int = 32,
) -> ExplanationScores:
    """Score whole and masked images once, in both spaces, for `m` methods at a time.

    With `region="kept"` the masked image is X∘E + B∘(1−E), B the background (equations 13 and 14 use it); with
    `"removed"` E and 1−E change places, which is what Average Drop in Logit needs (§6.4).

    Args:
        model: in evaluation mode; returns logits `(n, classes)`.
        inputs: normalised images.
        maps: one raw map per method (an explainer's `(n, 1, h, w)`, or several concatenated along dim 1), of any
            resolution; constant ones are defined by `min_max` and marked in the result.
        target: the class explained; None takes the predicted one.
        settings: `score_space` is not looked at: both spaces are returned.
        normalisation: what made `inputs`; only `background="black"` needs it.
        region: which part of the image stays visible.
        batch_size: images per forward pass.

    Raises:
        ValueError: a model in training mode, inputs that are not floats, another number of maps than of inputs, maps
            that are not finite.
    """
    require_evaluation_mode(model)
    require_normalised(inputs, maps)
    logits = predict(model, inputs, batch_size)
    classes = resolve_target(target, logits)
    original = select_class(logits, classes)
    explained = explanation_maps(maps.to(inputs.device).float(), (inputs.shape[2], inputs.shape[3]), settings)
    masks = explained.masks if region == "kept" else 1 - explained.masks
    behind = background_of(inputs, settings.background, normalisation)
    return ExplanationScores(
        target=classes,
        original=original,
        masked=_masked_scores(model, inputs, behind, masks, classes, original, batch_size),
        area=explained.masks.mean(dim=(2, 3)),
        constant=explained.constant,
    )


def _masked_scores(
    model: nn.Module,
    inputs: Float[Tensor, "n 3 h w"],
    behind: Float[Tensor, "n 3 h w"],
    masks: Float[Tensor, "n m h w"],
    target: Int[Tensor, " n"],
    original: ClassScores,
    batch_size: int,
) -> ClassScores:
    images, methods = masks.shape[:2]
    flat = masks.flatten(0, 1)
    # A mask of ones leaves the image itself. It was scored already, and scoring it again in another batch would
    # differ by rounding, which Increase in Confidence would count.
    todo = (flat != 1).flatten(1).any(dim=1).nonzero()[:, 0]
    image_of = todo // methods

    def compose(index: Int[Tensor, " k"]) -> Float[Tensor, "k 3 h w"]:
        mask, rows = flat[todo[index], None], image_of[index]
        return (inputs[rows] * mask + behind[rows] * (1 - mask)).to(inputs.dtype)

    if not len(todo):
        return ClassScores(*(score[:, None].expand(-1, methods) for score in (original.logit, original.probability)))
    scores = score_in_batches(model, compose, target[image_of], batch_size)
    logit = original.logit.repeat_interleave(methods).index_copy(0, todo, scores.logit)
    probability = original.probability.repeat_interleave(methods).index_copy(0, todo, scores.probability)
    return ClassScores(logit.view(images, methods), probability.view(images, methods))
