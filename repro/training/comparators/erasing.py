"""Comparators that hide a part of the image or of its features: HaS, CutMix, ADL and ACoL."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from repro.data.images import constant
from repro.losses.cam import ega_loss, unit_range
from repro.models.cam_network import CAMNetwork, CAMOutput, add_after, maps_of, pooled_maps, pools_and_end
from repro.training.batches import Batch
from repro.training.cam import Comparator, Ingredient, SeenBatch, StepContext
from repro.training.ega import EGASettings

REFERENCE_SIDE = 224


class HaSSettings(Comparator):
    """HaS, hide-and-seek: hides grid patches of every training image; evaluation sees whole images.

    Hidden pixels take the training mean, which normalisation makes 0 (§3.2).
    """

    id: ClassVar[str] = "has"
    label: ClassVar[str] = "HaS"
    source: ClassVar[str] = "Singh and Lee, ICCV 2017"

    sizes: tuple[int, ...] = (0, 16, 32, 44, 56)
    """Sides of the patches in pixels of a 224 × 224 image, one drawn per image; 0 hides nothing. Stated: §4.1 of HaS
    ("mixed"). In proportion for other sizes (inferred)."""
    probability: float = Field(default=0.5, ge=0, le=1)
    """That a patch is hidden. Stated: §4.1; the WSOL benchmark's default is 0.5, too."""

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """The same batch with hidden patches; labels stay."""
        side = batch.images.shape[-1]
        sizes = tuple(round(size * side / REFERENCE_SIDE) for size in self.sizes)
        cells = max((-(-side // size) for size in sizes if size > 0), default=1)
        which = (context.random.uniform() * len(sizes)).long()
        hide = context.random.uniform(cells, cells) < self.probability
        hidden = hidden_pixels(hide, constant(sizes, hide.device)[which], side)
        return replace(batch, images=batch.images.masked_fill(hidden[:, None], 0.0))


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


class CutMixSettings(Comparator):
    """CutMix: pastes a box of another image of the batch into every image and mixes their labels by area (§3.1).

    One box for the whole batch, as the authors' code. λ ~ Beta(1, 1), the uniform distribution (stated: §3.1).
    Partners come from the batches of all processes, so that their number does not matter.
    """

    id: ClassVar[str] = "cutmix"
    label: ClassVar[str] = "CutMix"
    source: ClassVar[str] = "Yun et al., ICCV 2019"
    version: ClassVar[int] = 2
    readings: ClassVar[dict[str, str]] = {"ega.comparator.cutmix_box": "batch"}

    probability: float = Field(default=1.0, ge=0, le=1)
    """That a batch is mixed. Stated: the WSOL benchmark's default is 1; the authors' ImageNet runs use 1, too."""

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """Mixed images with class probabilities as target; `labels` stay those of the receiving images."""
        share = context.random.share
        keep, x, y, applied = context.random.shared(4)
        partner = context.random.shared(share.batch_size).argsort()[share.rows]
        keep = torch.where(applied < self.probability, keep, 1.0)
        box = pasted_pixels(keep, x, y, batch.images.shape[-2], batch.images.shape[-1])
        images = torch.where(box, share.whole(batch.images)[partner], batch.images)
        own = F.one_hot(batch.target, context.network.classes).float() if batch.target.ndim == 1 else batch.target
        area = box.float().mean()
        return replace(batch, images=images, target=(1 - area) * own + area * share.whole(own)[partner])


def pasted_pixels(
    keep: Float[Tensor, ""], x: Float[Tensor, ""], y: Float[Tensor, ""], height: int, width: int
) -> Bool[Tensor, "height width"]:
    """Pixels that come from the partner: a box of area (1 − λ)·height·width around a uniform centre, cut at the border.

    Args:
        keep: λ, the share of the image that stays if nothing is cut off (§3.1, eq. 2).
        x: centre in [0, 1) of the width.
        y: centre in [0, 1) of the height.
        height: of the images in pixels.
        width: of the images in pixels.
    """
    side = (1 - keep).sqrt()

    def inside(centre: Float[Tensor, ""], length: int) -> Bool[Tensor, " length"]:
        middle, half = (centre * length).floor(), (side * length).floor().div(2, rounding_mode="floor")
        place = torch.arange(length, device=centre.device)
        return (place >= middle - half) & (place < middle + half)

    return inside(y, height)[:, None] & inside(x, width)


class AttentionDrop(nn.Module):
    """Multiplies features by a drop mask or by an importance map of their own attention (ADL §3.1); no parameters.

    Does nothing in evaluation mode, and nothing while `dropping` is None: only the forward pass of a training step
    sets it. So an attack sees the network without the drop.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.dropping: Bool[Tensor, ""] | None = None

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features where attention, their mean over channels, is below γ of its maximum; or times its sigmoid."""
        if not self.training or self.dropping is None:
            return features
        attention = features.mean(1, keepdim=True)
        kept = attention < self.threshold * attention.amax((1, 2, 3), keepdim=True)
        return features * torch.where(self.dropping, kept.to(features.dtype), attention.sigmoid())


class ADLSettings(Comparator):
    """ADL, attention-based drop layers behind the last two pools and the last stage.

    These are pool3, pool4 and conv5 of VGG-16 (inferred for other backbones). The layer equals the authors' code: mean
    over channels, threshold of each image's maximum, one draw per layer and step, gradient through the importance only.
    """

    id: ClassVar[str] = "adl"
    label: ClassVar[str] = "ADL"
    source: ClassVar[str] = "Choe and Shim, CVPR 2019"
    readings: ClassVar[dict[str, str]] = {"ega.comparator.adl_threshold": "0.8"}

    drop_rate: float = Field(default=0.75, ge=0, le=1)
    """Probability that a step drops rather than highlights. Stated: 75 %, §4.1; authors' script and benchmark too."""
    threshold: float = Field(default=0.8, gt=0, lt=1)
    """γ, share of the largest attention from which on features are dropped. Stated: 80 % for VGG, §4.1."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the layers."""
        add_after(network, pools_and_end(network)[-3:], lambda channels: AttentionDrop(self.threshold))
        return network

    @contextmanager
    def forward_context(self, context: StepContext) -> Iterator[None]:
        """Draw for this step and each layer whether it drops or highlights."""
        layers = [layer for layer in context.network.modules() if isinstance(layer, AttentionDrop)]
        drops = context.random.shared(len(layers)) < self.drop_rate
        try:
            for layer, drop in zip(layers, drops, strict=True):
                layer.dropping = drop
            yield
        finally:
            for layer in layers:
                layer.dropping = None


class ACoLSettings(Comparator):
    """ACoL: a second classifier learns from the features that the first one leaves (§3.2, algorithm 1).

    Features are average-pooled before both, as in the authors' code. Classifier B starts as a copy of A, so that both
    go on from the same pretraining where there is one. Top-1 is that of A, as in the WSOL benchmark.
    """

    id: ClassVar[str] = "acol"
    label: ClassVar[str] = "ACoL"
    source: ClassVar[str] = "Zhang et al., CVPR 2018"
    version: ClassVar[int] = 2
    readings: ClassVar[dict[str, str]] = {
        "ega.comparator.acol_start": "copy",
        "ega.comparator.acol_map": "14",
    }

    threshold: float = Field(default=0.6, gt=0, lt=1)
    """δ. Stated: 0.6 is the best of 0.5 to 0.9 on ILSVRC (paper §4.3); the benchmark's default is 0.7."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Pool the features and add classifier B, of the same form as A."""
        last = pools_and_end(network)[-1]
        add_after(network, [last], lambda channels: nn.AvgPool2d(3, stride=1, padding=1))
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
        other = self.complement(seen.network, seen.output, seen.classes)
        first, second = (unit_range(maps_of(maps, seen.classes).float()) for maps in (seen.output.maps, other.maps))
        return torch.maximum(first, second)

    def complement(self, network: CAMNetwork, output: CAMOutput, classes: Int[Tensor, " m"]) -> CAMOutput:
        """Maps and logits of classifier B, given what A found for `classes`."""
        erased = erase(output.auxiliary["acol_features"], maps_of(output.maps, classes), self.threshold)
        classifier = cast(nn.Conv2d | nn.Linear, network.branches["acol_classifier"])
        return pooled_maps(network.branches["acol_neck"](erased), classifier)


def erase(
    features: Float[Tensor, "n channels h w"], maps: Float[Tensor, "n h w"], threshold: float
) -> Float[Tensor, "n channels h w"]:
    """`features` with zeros where the min–max scaled map is at least `threshold` (ACoL §3.2).

    The mask carries no gradient: classifier A does not learn to please classifier B.
    """
    keep = unit_range(maps.detach().float()) < threshold
    return features * keep[:, None].to(features.dtype)


# A comparator with EGA's ingredients on top, which no paper has tried: its layers become dual where they hold batch
# norms, its images are attacked as it made them, and its random layers are silent during the attack.


class _OnTop(EGASettings):
    source: ClassVar[str] = "not published"

    def ingredients(self) -> list[Ingredient]:
        """The comparator's hooks, then the attack and the entropy."""
        return [cast(Ingredient, self), *EGASettings.ingredients(self)]


class HaSWithEGA(_OnTop, HaSSettings):
    """HaS and EGA."""

    id: ClassVar[str] = "has_ega"
    label: ClassVar[str] = "HaS + EGA (not published)"


class CutMixWithEGA(_OnTop, CutMixSettings):
    """CutMix and EGA."""

    id: ClassVar[str] = "cutmix_ega"
    label: ClassVar[str] = "CutMix + EGA (not published)"


class ADLWithEGA(_OnTop, ADLSettings):
    """ADL and EGA."""

    id: ClassVar[str] = "adl_ega"
    label: ClassVar[str] = "ADL + EGA (not published)"
