"""HaS, hide-and-seek: patches of the training images are hidden at random (Singh and Lee, ICCV 2017)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from repro.losses.cam import Reduction, ega_loss, unit_range
from repro.models.cam_network import CAMNetwork, CAMOutput, add_after, pooled_maps, pools_and_end
from repro.training.batches import Batch, own_share, whole_batch
from repro.training.cam import Ingredient, SeenBatch, StepContext
from repro.training.comparators.settings import ComparatorSettings

_REFERENCE_SIDE = 224


@dataclass(frozen=True)
class HiddenPatches(Ingredient):
    """Hides grid patches of every image; hidden pixels take the training mean, which normalisation makes 0 (§3.2)."""

    sizes: tuple[int, ...]
    probability: float

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """The same batch with hidden patches; labels stay."""
        side = batch.images.shape[-1]
        sizes = torch.tensor([round(size * side / _REFERENCE_SIDE) for size in self.sizes])
        cells = max((-(-side // int(size)) for size in sizes if size > 0), default=1)
        which = (context.random.uniform() * len(self.sizes)).long().cpu()
        hide = context.random.uniform(cells, cells) < self.probability
        hidden = hidden_pixels(hide, sizes[which].to(hide.device), side)
        return replace(batch, images=batch.images.masked_fill(hidden[:, None], 0.0))


class HaSSettings(ComparatorSettings):
    """HaS in the CAM loop. Evaluation sees whole images."""

    sizes: tuple[int, ...] = (0, 16, 32, 44, 56)
    """Sides of the patches in pixels of a 224 × 224 image, one drawn per image; 0 hides nothing. Stated: §4.1 of HaS
    ("mixed"). In proportion for other sizes (inferred)."""
    probability: float = Field(default=0.5, ge=0, le=1)
    """That a patch is hidden. Stated: §4.1; the WSOL benchmark's default is 0.5, too."""

    def ingredients(self) -> list[Ingredient]:
        """Hidden patches."""
        return [HiddenPatches(self.sizes, self.probability)]


def hidden_pixels(
    hide: Bool[Tensor, "n cells cells"], sizes: Int[Tensor, " n"], side: int
) -> Bool[Tensor, "n side side"]:
    """Pixels of the patches to hide, for grids of `sizes` (n,) pixels that start in the upper left corner.

    Images with size 0 have none. Patches at the lower and right border may be smaller.
    """
    cell = torch.arange(side, device=hide.device) // sizes.clamp(min=1)[:, None]
    cell = torch.where(sizes[:, None] > 0, cell, 0)
    image = torch.arange(len(hide), device=hide.device)[:, None, None]
    return hide[image, cell[:, :, None], cell[:, None, :]] & (sizes > 0)[:, None, None]


# CutMix: a box of each image is replaced by that of another, labels in proportion (Yun et al., ICCV 2019).


@dataclass(frozen=True)
class MixedBoxes(Ingredient):
    """Pastes a box of another image of the batch into every image and mixes their labels by area (§3.1).

    Every image has a box and a partner of its own (inferred: the paper draws one box per image, the authors' code one
    per batch). Partners come from the batches of all processes, so that their number does not matter.
    """

    probability: float

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """Mixed images with class probabilities as target; `labels` stay those of the receiving images."""
        keep, x, y, applied, order = context.random.uniform(5).unbind(1)
        partner = own_share(whole_batch(order).argsort())
        keep = torch.where(applied < self.probability, keep, 1.0)
        boxes = pasted_pixels(keep, x, y, batch.images.shape[-2], batch.images.shape[-1])
        images = torch.where(boxes[:, None], whole_batch(batch.images)[partner], batch.images)
        share = boxes.float().mean((1, 2))[:, None]
        classes = context.network.classes
        own = F.one_hot(batch.target, classes).float() if batch.target.ndim == 1 else batch.target
        return replace(batch, images=images, target=(1 - share) * own + share * whole_batch(own)[partner])


class CutMixSettings(ComparatorSettings):
    """CutMix in the CAM loop. λ ~ Beta(1, 1), the uniform distribution (stated: §3.1)."""

    probability: float = Field(default=1.0, ge=0, le=1)
    """That an image is mixed. Stated: the WSOL benchmark's default is 1; the authors' ImageNet runs use 1, too."""

    def ingredients(self) -> list[Ingredient]:
        """Mixed boxes."""
        return [MixedBoxes(self.probability)]


def pasted_pixels(
    keep: Float[Tensor, " n"], x: Float[Tensor, " n"], y: Float[Tensor, " n"], height: int, width: int
) -> Bool[Tensor, "n height width"]:
    """Pixels that come from the partner: boxes of area (1 − λ)·height·width around uniform centres, cut at the border.

    Args:
        keep: λ, the share of the image that stays if nothing is cut off (§3.1, eq. 2).
        x: centre in [0, 1) of the width.
        y: centre in [0, 1) of the height.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    side = (1 - keep).sqrt()

    def inside(centre: Float[Tensor, " n"], length: int) -> Bool[Tensor, "n length"]:
        middle, half = (centre * length).floor(), (side * length).floor().div(2, rounding_mode="floor")
        place = torch.arange(length, device=centre.device)
        return (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])

    return inside(y, height)[:, :, None] & inside(x, width)[:, None, :]


# ADL, attention-based drop layer: hides or highlights what a stage attends to (Choe and Shim, CVPR 2019).


class AttentionDrop(nn.Module):
    """Multiplies features by a drop mask or by an importance map of their own attention (§3.1); no parameters.

    Does nothing in evaluation mode, and nothing while `dropping` is None: only the forward pass of a training step
    sets it. So an attack sees the network without the drop.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.dropping: bool | None = None

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features where attention, their mean over channels, is below γ of its maximum; or times its sigmoid."""
        if not self.training or self.dropping is None:
            return features
        attention = features.mean(1, keepdim=True)
        if self.dropping:
            return features * (attention < self.threshold * attention.amax((1, 2, 3), keepdim=True))
        return features * attention.sigmoid()


@dataclass(frozen=True)
class AttentionDropLayers(Ingredient):
    """Drop layers behind the last two pools and the last stage: pool3, pool4 and conv5 of VGG-16, as the authors place
    them (inferred for other backbones)."""

    drop_rate: float
    threshold: float

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the layers."""
        add_after(network, pools_and_end(network)[-3:], lambda channels: AttentionDrop(self.threshold))
        return network

    @contextmanager
    def forward_context(self, context: StepContext) -> Iterator[None]:
        """Draw for this step and each layer whether it drops or highlights."""
        layers = [layer for layer in context.network.modules() if isinstance(layer, AttentionDrop)]
        drops = (context.random.shared(len(layers)) < self.drop_rate).tolist()
        try:
            for layer, drop in zip(layers, drops, strict=True):
                layer.dropping = drop
            yield
        finally:
            for layer in layers:
                layer.dropping = None


class ADLSettings(ComparatorSettings):
    """ADL in the CAM loop."""

    drop_rate: float = Field(default=0.75, ge=0, le=1)
    """Probability that a step drops rather than highlights. Stated: 75 %, §4.1; also the benchmark's default."""
    threshold: float = Field(default=0.8, gt=0, lt=1)
    """γ, share of the largest attention from which on features are dropped. Stated: 80 % for VGG, §4.1 (the benchmark's
    default is 0.9)."""

    def ingredients(self) -> list[Ingredient]:
        """The drop layers."""
        return [AttentionDropLayers(self.drop_rate, self.threshold)]


# ACoL: a second classifier learns from what the first one leaves (Zhang et al., CVPR 2018).


@dataclass(frozen=True)
class ComplementaryClassifier(Ingredient):
    """Classifier B on the backbone's features, erased where classifier A sees the class (ACoL §3.2, algorithm 1)."""

    threshold: float
    """δ of the min–max scaled map of classifier A."""
    reduction: Reduction = "sum"

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add classifier B, of the same form as A.

        It starts as a copy of A, so that both go on from the same pretraining where there is one (inferred; the paper
        draws both at random). Erasing makes them differ from the first step on.
        """
        last = [name for name, _ in network.backbone.named_children()][-1]
        network.add_branch("acol_features", nn.Identity(), stage=last)
        network.add_branch("acol_neck", copy.deepcopy(network.neck))
        network.add_branch("acol_classifier", copy.deepcopy(network.classifier))
        return network

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy of classifier B; the paper adds both with equal weight."""
        found = self.complement(context.network, output, batch.labels.repeat(len(batch.views)))
        return {"complement": ega_loss(list(batch.by_view(found.logits).values()), batch.target, self.reduction)}

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"]:
        """The elementwise maximum of both classifiers' scaled maps (§3.2)."""
        rows = torch.arange(len(seen.classes), device=seen.classes.device)
        other = self.complement(seen.network, seen.output, seen.classes)
        first, second = (unit_range(maps[rows, seen.classes].float()) for maps in (seen.output.maps, other.maps))
        return torch.maximum(first, second)

    def complement(self, network: CAMNetwork, output: CAMOutput, classes: Int[Tensor, " m"]) -> CAMOutput:
        """Maps and logits of classifier B, given what A found for `classes`."""
        features = output.auxiliary["acol_features"]
        chosen = output.maps[torch.arange(len(classes), device=classes.device), classes]
        erased = erase(features, chosen, self.threshold)
        classifier = cast(nn.Conv2d | nn.Linear, network.branches["acol_classifier"])
        return pooled_maps(network.branches["acol_neck"](erased), classifier)


class ACoLSettings(ComparatorSettings):
    """ACoL in the CAM loop. Top-1 is that of classifier A, as in the WSOL benchmark.

    Left out, since only the authors' code has it: a 3×3 average pooling of the features before both classifiers.
    """

    threshold: float = Field(default=0.6, gt=0, lt=1)
    """δ. Stated: 0.6 is the best of 0.5 to 0.9 on ILSVRC (paper §4.3); the benchmark's default is 0.7."""

    def ingredients(self) -> list[Ingredient]:
        """The second classifier."""
        return [ComplementaryClassifier(self.threshold, self.reduction)]


def erase(
    features: Float[Tensor, "n channels h w"], maps: Float[Tensor, "n h w"], threshold: float
) -> Float[Tensor, "n channels h w"]:
    """`features` with zeros where the min–max scaled map is at least `threshold` (ACoL §3.2).

    The mask carries no gradient: classifier A does not learn to please classifier B.
    """
    keep = unit_range(maps.detach().float()) < threshold
    return features * keep[:, None].to(features.dtype)
