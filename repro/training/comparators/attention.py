"""Backprop: boxes from the gradient of the class score (Simonyan, Vedaldi and Zisserman, ICLR workshop 2014)."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from repro.data.wsol_metadata import parent_levels
from repro.losses.cam import Reduction, ega_loss, unit_range
from repro.models.cam_backbones import NonLocalBlock
from repro.models.cam_network import CAMNetwork, CAMOutput, add_after, pools_and_end, stage_channels
from repro.training.batches import Batch
from repro.training.cam import Ingredient, SeenBatch, StepContext
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings

_ITERATIONS = 5


@dataclass(frozen=True)
class GradientSegments(Ingredient):
    """Localises with a colour segmentation whose seeds come from the saliency map (§3.2)."""

    foreground: float
    background: float

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n height width"]:
        """1 on the object, 0 elsewhere, at the size of the images."""
        found = saliency(seen.network, seen.images, seen.classes)
        return torch.stack(
            [
                segment(image, one, self.foreground, self.background)
                for image, one in zip(seen.images.float().cpu(), found.float().cpu(), strict=True)
            ]
        ).to(seen.images.device)


class BackpropSettings(BorrowsTraining):
    """Backprop: plain CAM training; boxes from the gradient."""

    foreground: float = Field(default=0.95, gt=0, lt=1)
    """Saliency above this quantile of the image is object. Stated: 95 %, §3.2."""
    background: float = Field(default=0.30, gt=0, lt=1)
    """Saliency below this quantile is background. Stated: 30 %, §3.2."""

    def ingredients(self) -> list[Ingredient]:
        """Segments of the gradient."""
        return [GradientSegments(self.foreground, self.background)]


def saliency(
    network: CAMNetwork, images: Float[Tensor, "n 3 h w"], classes: Int[Tensor, " n"]
) -> Float[Tensor, "n h w"]:
    """Largest absolute gradient over the channels of the score of `classes` (§3.1); also inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = images.clone().requires_grad_()
        scores = network(inputs).gather(1, classes.clone()[:, None]).sum()
        (gradient,) = torch.autograd.grad(scores, inputs)
    return gradient.abs().amax(1)


def segment(
    image: Float[Tensor, "3 h w"], salient: Float[Tensor, "h w"], foreground: float, background: float
) -> Float[Tensor, "h w"]:
    """GrabCut with the salient pixels as object and the least salient as background; all 0 for a constant saliency.

    The paper uses the graph cut of Boykov and Jolly with Gaussian mixtures as colour models, which GrabCut iterates.
    Colours are those of the normalised image stretched to 0…255; the models do not mind an affine change.
    """
    high, low = torch.quantile(salient.flatten(), torch.tensor([foreground, background])).tolist()
    if high <= low:
        return torch.zeros_like(salient)
    marks = np.full(salient.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    marks[(salient >= high).numpy()] = cv2.GC_FGD
    marks[(salient < low).numpy()] = cv2.GC_BGD
    span = (image.amax() - image.amin()).clamp(min=1e-6)
    pixels = ((image - image.amin()) / span * 255).byte().permute(1, 2, 0).contiguous().numpy()
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(pixels, marks, (0, 0, 0, 0), *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy(np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32))


# CCAM and NL-CCAM: maps of all classes combined, and non-local blocks (Yang et al., WACV 2020).


@dataclass(frozen=True)
class CombinedMaps(Ingredient):
    """Localises with a weighted sum of the maps of all classes, probable ones positive, improbable ones negative."""

    power: float

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"]:
        """Σ_k γ(k)·M_(class of rank k); the network's ranking decides, not the class asked for (authors' code)."""
        return combine_maps(seen.output.maps, seen.output.logits, self.power)


@dataclass(frozen=True)
class NonLocalBlocks(Ingredient):
    """Non-local blocks behind all pools but the first and the last stage: pool2, pool3, pool4 and conv5 of VGG-16
    (stated: the authors' code; inferred for other backbones)."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the blocks; they start as the identity."""
        add_after(network, pools_and_end(network)[1:], NonLocalBlock)
        return network


class CCAMSettings(BorrowsTraining):
    """CCAM: plain CAM training, other maps."""

    power: PositiveFloat = 2.0
    """Degree of γ; 1 is linear. Stated: the authors' code evaluates CUB with the quadratic function."""

    def ingredients(self) -> list[Ingredient]:
        """Combined maps."""
        return [CombinedMaps(self.power)]


class NLCCAMSettings(ComparatorSettings):
    """NL-CCAM: non-local blocks while training, combined maps when localising."""

    power: PositiveFloat = 2.0
    """As in `CCAMSettings`."""

    def ingredients(self) -> list[Ingredient]:
        """Blocks and combined maps."""
        return [NonLocalBlocks(), CombinedMaps(self.power)]


def rank_weights(classes: int, power: float) -> Float[Tensor, " classes"]:
    """γ(k) = sign(t)·|t|^power with t = 1 − 2(k − 1)/(C − 1): 1 for the most, −1 for the least probable class.

    A single class has weight 1. The authors' quadratic function joins two halves with end points of their own; with
    200 classes its weights differ by less than 0.003.
    """
    place = torch.linspace(1, -1, classes) if classes > 1 else torch.ones(1)
    return place.sign() * place.abs() ** power


def combine_maps(
    maps: Float[Tensor, "n classes h w"], logits: Float[Tensor, "n classes"], power: float
) -> Float[Tensor, "n h w"]:
    """Sum of all maps, weighted by the rank of their logit: probable classes add, improbable ones subtract."""
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    weights = torch.empty_like(logits)
    weights.scatter_(1, ranked, rank_weights(logits.shape[1], power).to(logits).expand_as(logits).contiguous())
    return (weights[:, :, None, None] * maps).sum(1)


# SPG: masks of earlier layers learn from seeds that later ones produce (Zhang et al., ECCV 2018).

Thresholds = tuple[float, float]
"""Upper and lower: above is foreground, below background, between ignored."""
IGNORED = -1.0
_FALLBACK = 0.7  # of the maximum, where nothing reaches the upper threshold: the WSOL benchmark's rule


@dataclass(frozen=True)
class SelfProducedGuidance(Ingredient):
    """SPG-B and SPG-C on the last two stages and the head; SPG-A is the network itself (SPG §3.1)."""

    attention: Thresholds
    second: Thresholds
    fused: Thresholds

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add a 3×3 convolution on each of the last two stages, shared layers behind both (SPG-B), and SPG-C.

        On VGG these are pool4, conv5 and the head, as in the WSOL benchmark; its number of channels is used too, that
        of the last stage.
        """
        (first, second), inputs = zip(*list(stage_channels(network).items())[-2:], strict=True)
        width = inputs[1]
        network.add_branch("spg_b1", _convolution(inputs[0], width), stage=first)
        network.add_branch("spg_b2", _convolution(width, width), stage=second)
        network.add_branch("spg_shared", nn.Sequential(_convolution(width, width), _mask(width)))
        neck = network.classifier.weight.shape[1]
        network.add_branch("spg_c", nn.Sequential(_convolution(neck, width), _mask(width)), stage="neck")
        return network

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """Binary cross-entropies from top to bottom: class map → B2 → B1, and the mean of both → C (§3.2)."""
        labels = batch.labels.repeat(len(batch.views))
        maps = output.maps[torch.arange(len(labels), device=labels.device), labels]
        shared = context.network.branches["spg_shared"]
        b1, b2 = (shared(output.auxiliary[name])[:, 0] for name in ("spg_b1", "spg_b2"))
        both = (b1.sigmoid() + b2.sigmoid()) / 2
        return {
            "spg_b2": seed_loss(b2, seeds(unit_range(maps.float()), self.attention)),
            "spg_b1": seed_loss(b1, seeds(b2.sigmoid(), self.second)),
            "spg_c": seed_loss(output.auxiliary["spg_c"][:, 0], seeds(both, self.fused)),
        }


class SPGSettings(ComparatorSettings):
    """SPG in the CAM loop; localised with the plain class map, as in the WSOL benchmark.

    Thresholds are the defaults of the benchmark's configuration (stated there). All terms have weight 1, as there.
    Inferred: seeds are taken at the maps' resolution, where the benchmark enlarges everything to 224 × 224 first.
    """

    attention: Thresholds = (0.7, 0.01)
    """Of the min–max scaled class map, for the seeds of B2."""
    second: Thresholds = (0.5, 0.05)
    """Of B2's mask, for the seeds of B1."""
    fused: Thresholds = (0.7, 0.1)
    """Of the mean of both masks, for the seeds of C."""

    @model_validator(mode="after")
    def _check(self) -> "SPGSettings":
        for name in ("attention", "second", "fused"):
            high, low = getattr(self, name)
            if not 0 <= low < high <= 1:
                raise ValueError(f"{name} is ({high}, {low}); give the upper threshold first, both between 0 and 1")
        return self

    def ingredients(self) -> list[Ingredient]:
        """The guidance."""
        return [SelfProducedGuidance(self.attention, self.second, self.fused)]


def seeds(mask: Float[Tensor, "n h w"], thresholds: Thresholds) -> Float[Tensor, "n h w"]:
    """1 for foreground, 0 for background, -1 where ignored, without gradient (§3.2).

    Where no pixel of an image is above the upper threshold, those above 0.7 of its maximum are foreground.
    """
    mask = mask.detach()
    high, low = thresholds
    peak = mask.amax((1, 2), keepdim=True)
    limit = torch.where(peak > high, torch.full_like(peak, high), _FALLBACK * peak)
    found = torch.where(mask > limit, 1.0, IGNORED)
    return torch.where(mask < low, 0.0, found)


def seed_loss(logits: Float[Tensor, "n h w"], wanted: Float[Tensor, "n h w"]) -> Float[Tensor, ""]:
    """Binary cross-entropy over the pixels that are not ignored; 0 where all are."""
    used = wanted != IGNORED
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted.clamp(min=0).float(), reduction="none")
    return (losses * used).sum() / used.sum().clamp(min=1)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(_drawn(layer), nn.ReLU())


def _mask(inputs: int) -> nn.Conv2d:
    return _drawn(nn.Conv2d(inputs, 1, 1))


def _drawn(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


# DANet: divergent activation by a class hierarchy and by several maps per class (Xue et al., ICCV 2019).


class SeveralMaps(nn.Conv2d):
    """A 1×1 classifier with K maps per class whose mean is the class map (discrepant divergent activation)."""

    def __init__(self, classifier: nn.Conv2d | nn.Linear, count: int) -> None:
        """Go on from `classifier`: its weights plus Xavier noise whose mean over the maps of a class is zero.

        So the class maps are those of `classifier` at the start, and the K maps differ, without which the discrepant
        loss has the same gradient for all of them (inferred; the paper draws the weights).
        """
        classes, width = classifier.weight.shape[:2]
        super().__init__(width, classes * count, 1)
        self.count = count
        noise = nn.init.xavier_uniform_(torch.empty(classes * count, width)).view(classes, count, width)
        weight = classifier.weight.detach().reshape(classes, 1, width) + noise - noise.mean(1, keepdim=True)
        assert self.bias is not None and classifier.bias is not None
        self.weight.data.copy_(weight.reshape(classes * count, width, 1, 1))
        self.bias.data.copy_(classifier.bias.detach().repeat_interleave(count))

    def forward(self, features: Float[Tensor, "n width h w"]) -> Float[Tensor, "n classes h w"]:
        """Class maps."""
        return self.maps(features).mean(2)

    def maps(self, features: Float[Tensor, "n width h w"]) -> Float[Tensor, "n classes k h w"]:
        """All maps of every class."""
        return super().forward(features).unflatten(1, (-1, self.count))


class ParentClassifier(nn.Module):
    """Head convolutions and a 1×1 classifier for one level of parents, on the backbone's features."""

    def __init__(self, neck: nn.Sequential, width: int, parents: int) -> None:
        super().__init__()
        self.neck = copy.deepcopy(neck)
        self.classifier = nn.Conv2d(width, parents, 1)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(cast(Tensor, self.classifier.bias))

    def forward(self, features: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n parents"]:
        """Logits of the parents."""
        return self.classifier(self.neck(features)).mean((2, 3))


@dataclass(frozen=True)
class DivergentActivation(Ingredient):
    """Parent classifiers on shared features (HDA, §3.2) and dissimilar maps of one class (DDA, §3.3)."""

    maps: int
    discrepancy_weight: float
    parent_weight: float
    parents: tuple[tuple[int, ...], ...]
    reduction: Reduction = "sum"

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Several maps per class, and one more head per level of parents.

        Raises:
            ValueError: a level does not name one parent for every class.
        """
        classes, width = network.classifier.weight.shape[:2]
        for level in self.parents:
            if len(level) != classes:
                raise ValueError(
                    f"the hierarchy has {len(level)} classes, but the network {classes}; give one for each"
                )
        last = [name for name, _ in network.backbone.named_children()][-1]
        network.classifier = SeveralMaps(network.classifier, self.maps)
        network.add_branch("danet_features", nn.Identity(), stage="neck")
        for number, level in enumerate(self.parents):
            head = ParentClassifier(network.neck, width, max(level) + 1)
            network.add_branch(f"danet_parents{number}", head, stage=last)
        return network

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """The weighted discrepant loss of the true class's maps, and a cross-entropy per level of parents."""
        classifier = cast(SeveralMaps, context.network.classifier)
        labels = batch.labels.repeat(len(batch.views))
        every = classifier.maps(output.auxiliary["danet_features"])
        own = every[torch.arange(len(labels), device=labels.device), labels]
        terms = {"discrepancy": self.discrepancy_weight * discrepancy(own)}
        for number, level in enumerate(self.parents):
            table = torch.tensor(level, device=batch.labels.device)
            views = list(batch.by_view(output.auxiliary[f"danet_parents{number}"]).values())
            terms[f"parents{number}"] = self.parent_weight * ega_loss(views, table[batch.labels], self.reduction)
        return terms


class DANetSettings(ComparatorSettings):
    """DANet in the CAM loop; localised with the mean of the maps of the class.

    Without a hierarchy only the discrepant half is at work. Read here: parents are those of the true class, also where
    labels are mixed.
    """

    maps: int = Field(default=8, ge=2)
    """K. Stated: 8 in the authors' training script for CUB."""
    discrepancy_weight: float = Field(default=0.01, ge=0)
    """Stated: 0.01 in the authors' training script for CUB."""
    parent_weight: float = Field(default=1.0, ge=0)
    """Of each level's cross-entropy. Inferred: no weight is known to us."""
    parents: tuple[tuple[int, ...], ...] = ()
    """Per level the parent of every class. The paper has families and orders of birds, and WordNet for ILSVRC."""

    def for_classes(self, classes: Sequence[str]) -> "DANetSettings":
        """The same with the hierarchy of these classes, unless one is given."""
        return self if self.parents else self.model_copy(update={"parents": parent_levels(classes)})

    def ingredients(self) -> list[Ingredient]:
        """Both kinds of divergent activation."""
        return [
            DivergentActivation(self.maps, self.discrepancy_weight, self.parent_weight, self.parents, self.reduction)
        ]


def discrepancy(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """Mean cosine similarity of the K(K - 1)/2 pairs of maps of each image (§3.3): 1 for equal maps, 0 for disjoint.

    Inferred: maps are compared as they are, not rectified.
    """
    unit = F.normalize(maps.float().flatten(2), dim=2)
    similar = unit @ unit.transpose(1, 2)
    pairs = math.comb(maps.shape[1], 2)
    return similar.triu(1).sum((1, 2)).mean() / pairs
