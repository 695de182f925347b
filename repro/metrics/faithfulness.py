"""Explanation maps as masks, and the scores a network gives to the masked images (ScoreCAM++, appendix A and §6.4).

One call scores several methods in both score spaces; the metrics of `faithfulness_metrics` take it from there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from repro.data.images import Normalisation
from repro.models.class_scores import ClassScores, ScoreSpace, class_scores, resolve_target

# Scoring altered images: the class score in both spaces, and what stands behind the parts that are hidden.

Background = Literal["mean", "black", "blur"]
"""`mean`: zero in the normalised image, so the mean colour; `black`: a zero pixel; `blur`: the blurred image."""

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0
"""Gaussian in pixels, as in RISE's insertion experiments."""


def require_evaluation_mode(model: nn.Module) -> None:
    """Raise `ValueError` for a model in training mode, whose scores depend on chance and on the batch."""
    if any(module.training for module in model.modules()):
        raise ValueError("model: (partly) in training mode; call model.eval() first, scores would depend on the batch")


def require_normalised(inputs: Tensor, maps: Tensor) -> None:
    """Raise `ValueError` for stored pixels instead of normalised images, or another number of maps than of images."""
    if not inputs.is_floating_point():
        raise ValueError(f"inputs: dtype {inputs.dtype}; expected normalised images, see Normalisation.apply")
    if len(inputs) != len(maps):
        raise ValueError(f"maps: for {len(maps)} images, but {len(inputs)} were given")


@torch.no_grad()
def predict(model: nn.Module, inputs: Float[Tensor, "n c h w"], batch_size: int) -> Float[Tensor, "n classes"]:
    """Logits of `inputs` in float32, `batch_size` images at a time; `ValueError` for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; expected at least 1")
    return torch.cat([model(chunk).float() for chunk in inputs.split(batch_size)])


def background_of(
    inputs: Float[Tensor, "n 3 h w"], background: Background, normalisation: Normalisation | None
) -> Float[Tensor, "n 3 h w"]:
    """What shows where an image is hidden, in normalised values.

    Raises:
        ValueError: `black` without a `normalisation`, or an image too small for the blur.
    """
    if background == "mean":
        return torch.zeros_like(inputs)
    if background == "black":
        if normalisation is None:
            raise ValueError("normalisation: None; background='black' needs the one that made the inputs")
        return normalisation.black(inputs.device).to(inputs.dtype).expand_as(inputs)
    size, smallest = tuple(inputs.shape[-2:]), BLUR_KERNEL // 2 + 1
    if min(size) < smallest:
        raise ValueError(f"inputs: {size} pixels; background='blur' needs at least {smallest} in each direction")
    return gaussian_blur(inputs, [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])


@torch.no_grad()
def score_in_batches(
    model: nn.Module,
    compose: Callable[[Int[Tensor, " k"]], Float[Tensor, "k 3 h w"]],
    targets: Int[Tensor, " total"],
    batch_size: int,
) -> ClassScores:
    """Scores of `total` composed images that are never all in memory.

    Args:
        model: in evaluation mode.
        compose: makes the images of the given indices into 0..total−1.
        targets: the class whose score is wanted, per image.
        batch_size: images per forward pass.
    """
    chunks = [
        class_scores(model(compose(index)).float(), targets[index])
        for index in torch.arange(len(targets), device=targets.device).split(batch_size)
    ]
    logit, probability = (torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("logit", "probability"))
    return ClassScores(logit, probability, chunks[0].classes)


# The area control: does a method win because its maps point better, or because they let more of the image through?

LOG_EXPONENT_LIMIT = 10.0
BISECTIONS = 30


class AreaMatched(NamedTuple):
    """Maps raised to a power, and how well that met the wanted area."""

    maps: Float[Tensor, "n m h w"]
    exponent: Float[Tensor, "n m"]
    """γ; above 1 the map was narrowed, below 1 widened."""
    reached: Bool[Tensor, "n m"]
    """False where no power can give the area: too few pixels above zero, or the map is constant."""


def area_matched(
    masks: Float[Tensor, "n m h w"], target_area: Float[Tensor, "n m"], tolerance: float = 1e-4
) -> AreaMatched:
    """`masks`^γ with γ > 0 such that its mean is `target_area`: the same ranking of pixels, another area.

    The mean falls strictly with γ wherever some pixel lies inside 0..1, so bisection on log γ finds it
    (docs/papers/scorecampp.md §1.4, the control row). γ stays within e^±10.

    Args:
        masks: 0..1 (the output of `explanation_maps`).
        target_area: wanted means, 0..1, e.g. the `area` of another method.
        tolerance: difference of the means up to which the area counts as reached.

    Raises:
        ValueError: masks or areas outside 0..1.
    """
    for name, value in (("masks", masks), ("target_area", target_area)):
        if not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name}: values outside 0..1; scale maps with explanation_maps first")
    low = torch.full_like(target_area, -LOG_EXPONENT_LIMIT)
    high = -low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_wide = _power(masks, middle).mean(dim=(2, 3)) > target_area
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    log_exponent = (low + high) / 2
    matched = _power(masks, log_exponent)
    reached = (matched.mean(dim=(2, 3)) - target_area).abs() <= tolerance
    return AreaMatched(matched, log_exponent.exp(), reached)


def whole_image(masks: Float[Tensor, "n m h w"]) -> Float[Tensor, "n 1 h w"]:
    """The map of ones: explains nothing, yet has an Average Drop of 0."""
    return torch.ones_like(masks[:, :1])


def _power(masks: Float[Tensor, "n m h w"], log_exponent: Float[Tensor, "n m"]) -> Float[Tensor, "n m h w"]:
    return masks ** log_exponent.exp()[..., None, None]


CONSTANT_RELATIVE_SPAN = 1e-6
"""A map whose values span less than this share of their size is constant: interpolation alone makes as much noise."""


class FaithfulnessSettings(BaseModel):
    """Every choice that Average Drop and its relatives leave open (docs/papers/scorecampp.md §3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_space: ScoreSpace = "probability"
    """The paper says probability; its code and printed numbers are logits (docs/papers/scorecampp.md §0, row 2)."""
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
    original = class_scores(logits, classes)
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
        logit, probability = (each[:, None].expand(-1, methods) for each in (original.logit, original.probability))
        return ClassScores(logit, probability, original.classes)
    scores = score_in_batches(model, compose, target[image_of], batch_size)
    logit = original.logit.repeat_interleave(methods).index_copy(0, todo, scores.logit)
    probability = original.probability.repeat_interleave(methods).index_copy(0, todo, scores.probability)
    return ClassScores(logit.view(images, methods), probability.view(images, methods), original.classes)
