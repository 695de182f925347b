"""Comparators that change where the maps come from or what they learn: Backprop, CCAM, NL-CCAM, SPG and DANet."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import ClassVar, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from repro.data.images import constant
from repro.losses.cam import ega_loss, unit_range
from repro.models.cam_backbones import NonLocalBlock
from repro.models.cam_network import CAMNetwork, CAMOutput, add_after, maps_of, pools_and_end, stage_channels
from repro.training.batches import Batch
from repro.training.cam import Comparator, Method, SeenBatch, StepContext
from repro.training.comparators.erasing import REFERENCE_SIDE
from repro.training.ega import CAMSettings

_GRABCUT_ITERATIONS = 5


class _PlainTraining(Comparator):
    """Trains plain CAM and only localises in another way; the network is trained once for all of these."""

    @property
    def trained_as(self) -> Method:
        """Plain CAM."""
        return CAMSettings(training=self.training)


class BackpropSettings(_PlainTraining):
    """Backprop: boxes from the gradient of the class score, by a colour segmentation that it seeds (§3.2)."""

    id: ClassVar[str] = "backprop"
    label: ClassVar[str] = "Backprop"
    source: ClassVar[str] = "Simonyan, Vedaldi and Zisserman, ICLR workshop 2014"
    readings: ClassVar[dict[str, str]] = {"ega.comparator.backprop_segmentation": "grabcut"}

    foreground: float = Field(default=0.95, gt=0, lt=1)
    """Saliency above this quantile of the image is object. Stated: 95 %, §3.2."""
    background: float = Field(default=0.30, gt=0, lt=1)
    """Saliency below this quantile is background. Stated: 30 %, §3.2."""

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n height width"]:
        """1 on the object, 0 elsewhere, at the size of the images."""
        found = saliency(seen.network, seen.images, seen.classes).float().cpu()
        pairs = zip(seen.images.float().cpu(), found, strict=True)
        segments = [segment(image, one, self.foreground, self.background) for image, one in pairs]
        return torch.stack(segments).to(seen.images.device)


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
    cv2.grabCut(pixels, marks, (0, 0, 0, 0), *models, _GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy(np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32))


class CombinedMaps(Comparator):
    """Localises with a weighted sum of the maps of all classes, probable ones positive, improbable ones negative."""

    power: PositiveFloat = 2.0
    """Degree of γ; 1 is linear. Stated: the authors' code evaluates CUB with the quadratic function."""

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"]:
        """Σ_k γ(k)·M_(class of rank k); the network's ranking decides, not the class asked for (authors' code)."""
        return combine_maps(seen.output.maps, seen.output.logits, self.power)


class CCAMSettings(CombinedMaps, _PlainTraining):
    """CCAM: plain CAM training, combined maps."""

    id: ClassVar[str] = "ccam"
    label: ClassVar[str] = "CCAM"
    source: ClassVar[str] = "Yang et al., WACV 2020"
    readings: ClassVar[dict[str, str]] = {"ega.comparator.ccam_network": "shared"}


class NLCCAMSettings(CombinedMaps):
    """NL-CCAM: combined maps of a network of its own, that of the authors' code.

    Non-local blocks stand behind all pools but the first and behind the last stage (pool2, pool3, pool4 and conv5 of
    VGG-16; inferred for others), rectifiers leak 0.2, and no convolution stands between the last stage, the pooling and
    a linear layer. Rectifiers that are no modules (torchvision's GoogLeNet) stay as they are.
    """

    id: ClassVar[str] = "nl_ccam"
    label: ClassVar[str] = "NL-CCAM"
    source: ClassVar[str] = "Yang et al., WACV 2020"
    version: ClassVar[int] = 2

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the blocks, which start as the identity, and replace rectifiers and head."""
        stages = pools_and_end(network)
        channels = stage_channels(network)[stages[-1]]
        for layer in list(network.backbone.modules()):
            for name, child in list(layer.named_children()):
                if isinstance(child, nn.ReLU):
                    setattr(layer, name, nn.LeakyReLU(0.2))
        add_after(network, stages[1:], NonLocalBlock)
        network.neck, network.classifier = nn.Sequential(), nn.Linear(channels, network.classes)
        return network


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


Thresholds = tuple[float, float]
"""Upper and lower: above is foreground, below background, between ignored."""
IGNORED = -1.0
_FEWEST_SEEDS = 30 / REFERENCE_SIDE**2  # of the pixels; authors' code: 30 of 224 × 224
_FALLBACK = 0.7  # of the maximum, where fewer reach the upper threshold


class SPGSettings(Comparator):
    """SPG: masks of earlier layers learn from seeds that later ones produce; localised with the plain class map.

    SPG-B stands on the last two stages and SPG-C on the head (VGG: pool4, conv5, head; the benchmark's places), as wide
    as the last stage. Masks are compared at the size of the image, and all terms have weight 1 (authors' code).
    """

    id: ClassVar[str] = "spg"
    label: ClassVar[str] = "SPG"
    source: ClassVar[str] = "Zhang et al., ECCV 2018"
    version: ClassVar[int] = 2
    readings: ClassVar[dict[str, str]] = {
        "ega.comparator.spg_dropout": "none",
        "ega.comparator.spg_fallback": "image",
    }

    attention: Thresholds = (0.7, 0.05)
    """Of the min–max scaled class map, for the seeds of B2. This and the next two: authors' code."""
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

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add a 3×3 convolution on each of the last two stages, shared layers behind both (SPG-B), and SPG-C."""
        (first, second), inputs = zip(*list(stage_channels(network).items())[-2:], strict=True)
        width = inputs[1]
        network.add_branch("spg_b1", _convolutions(inputs[0], width), stage=first)
        network.add_branch("spg_b2", _convolutions(width, width), stage=second)
        network.add_branch("spg_shared", _convolutions(width, width).append(_drawn(nn.Conv2d(width, 1, 1))))
        neck = network.classifier.weight.shape[1]
        mask = _convolutions(neck, width).append(_drawn(nn.Conv2d(width, 1, 1)))
        network.add_branch("spg_c", mask, stage="neck")
        return network

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """Binary cross-entropies from top to bottom: class map → B2 → B1, and the mean of both → C (§3.2)."""
        side = batch.images.shape[-1]
        shared = context.network.branches["spg_shared"]
        b1, b2 = (enlarged(shared(output.auxiliary[name]), side)[:, 0] for name in ("spg_b1", "spg_b2"))
        c = enlarged(output.auxiliary["spg_c"], side)[:, 0]
        maps = enlarged(maps_of(output.maps, batch.labels.repeat(len(batch.views)))[:, None], side)[:, 0]
        pairs = {
            "spg_b2": (b2, seeds(unit_range(maps.float()), self.attention)),
            "spg_b1": (b1, seeds(b2.sigmoid(), self.second)),
            "spg_c": (c, seeds((b1.sigmoid() + b2.sigmoid()) / 2, self.fused)),
        }
        sums = {name: seed_loss(logits, wanted) for name, (logits, wanted) in pairs.items()}
        return {name: context.random.share.ratio(total, count) for name, (total, count) in sums.items()}


def seeds(mask: Float[Tensor, "n h w"], thresholds: Thresholds) -> Float[Tensor, "n h w"]:
    """1 for foreground, 0 for background, -1 where ignored, without gradient (§3.2).

    Where fewer than 30 of 224² pixels of an image are above the upper threshold, those above 0.7 of its maximum are
    foreground.
    """
    mask = mask.detach()
    high, low = thresholds
    few = (mask > high).flatten(1).float().mean(1) < _FEWEST_SEEDS
    limit = torch.where(few[:, None, None], _FALLBACK * mask.amax((1, 2), keepdim=True), high)
    found = torch.where(mask > limit, 1.0, IGNORED)
    return torch.where(mask < low, 0.0, found)


def seed_loss(
    logits: Float[Tensor, "n h w"], wanted: Float[Tensor, "n h w"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the binary cross-entropies of the pixels that are not ignored, and the number of these."""
    used = wanted != IGNORED
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted.clamp(min=0).float(), reduction="none")
    return (losses * used).sum(), used.sum().float()


def enlarged(maps: Float[Tensor, "n c h w"], side: int, *, align: bool = False) -> Float[Tensor, "n c side side"]:
    """Maps at another size, bilinear."""
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=align)


def _convolutions(inputs: int, *outputs: int) -> nn.Sequential:
    """3×3 convolutions with rectifiers, drawn as the head's."""
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *outputs), outputs, strict=False):
        layers += [_drawn(nn.Conv2d(before, after, 3, padding=1)), nn.ReLU()]
    return nn.Sequential(*layers)


def _drawn(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


class SeveralMaps(nn.Conv2d):
    """A 1×1 classifier with K maps per class whose mean is the class map (DANet §3.3)."""

    def __init__(self, classifier: nn.Conv2d | nn.Linear, count: int) -> None:
        """Go on from `classifier`: its weights plus Xavier noise whose mean over the maps of a class is zero.

        So the class maps are those of `classifier` at the start, and the K maps differ, without which the discrepant
        loss has the same gradient for all of them (inferred; the authors draw the weights).
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


class ParentHead(nn.Module):
    """Two convolutions and K maps per parent, on a stage of the backbone."""

    def __init__(self, inputs: int, width: int, parents: int, count: int) -> None:
        super().__init__()
        self.neck = _convolutions(inputs, width, width)
        self.classifier = SeveralMaps(_drawn(nn.Conv2d(width, parents, 1)), count)

    def forward(self, features: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n parents k h w"]:
        """All maps of every parent."""
        return self.classifier.maps(self.neck(features))


class DANetSettings(Comparator):
    """DANet: classifiers for levels of parents (HDA, §3.2) and dissimilar maps of one class (DDA, §3.3).

    As the authors' code: one head per level, on the last stage the classes, one pool earlier their families, two
    earlier (half as wide) their orders; of the maps of the true class of every level half are drawn in each step and
    compared at the largest size. Without a hierarchy only the discrepant half is at work, on all K maps.
    """

    id: ClassVar[str] = "danet"
    label: ClassVar[str] = "DANet"
    source: ClassVar[str] = "Xue et al., ICCV 2019"
    version: ClassVar[int] = 2
    readings: ClassVar[dict[str, str]] = {
        "ega.comparator.danet_hierarchy": "birds",
        "ega.comparator.danet_start": "classifier",
    }

    maps: int = Field(default=8, ge=2)
    """K, for classes and parents. Stated: 8 in the authors' training script for CUB."""
    discrepancy_weight: float = Field(default=0.01, ge=0)
    """Stated: 0.01 in the authors' training script for CUB."""
    level_weight: float = Field(default=0.5, gt=0)
    """Of each level's cross-entropy, that of the classes included. Stated: the authors' code."""
    parents: tuple[tuple[int, ...], ...] = ()
    """Per level, finest first, the parent of every class; at most two levels."""

    def for_classes(self, classes: Sequence[str]) -> "DANetSettings":
        """The same with the hierarchy of these classes, unless one is given."""
        return self if self.parents else self.model_copy(update={"parents": parent_levels(classes)})

    def classification_weight(self) -> float:
        """That of every level."""
        return self.level_weight

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
        channels, stages = stage_channels(network), pools_and_end(network)[-2::-1]
        network.classifier = SeveralMaps(network.classifier, self.maps)
        network.add_branch("danet_features", nn.Identity(), stage="neck")
        for number, (level, stage) in enumerate(zip(self.parents, stages, strict=False)):
            head = ParentHead(channels[stage], width // (number + 1), max(level) + 1, self.maps)
            network.add_branch(f"danet_parents{number}", head, stage=stage)
        return network

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """The weighted discrepancy of the true classes' maps, and a cross-entropy per level of parents.

        Parents are those of the true class, also where labels are mixed.
        """
        labels = batch.labels.repeat(len(batch.views))
        groups, own, terms = self._groups(context.network, output), [labels], {}
        for number, (level, maps) in enumerate(zip(self.parents, groups[1:], strict=True)):
            table = constant(level, labels.device)
            views = list(batch.by_view(maps.mean((2, 3, 4))).values())
            term = ega_loss(views, table[batch.labels], self.reduction)
            terms[f"parents{number}"] = self.level_weight * term
            own.append(table[labels])
        together = _at_one_size([maps_of(maps, index) for maps, index in zip(groups, own, strict=True)])
        count = together.shape[1]
        if self.parents:
            together = together[:, context.random.shared(count).argsort()[: count // 2]]
        return {"discrepancy": self.discrepancy_weight * discrepancy(together)} | terms

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"]:
        """Mean over levels of the mean rectified map: of the class asked for, and of the most probable parents."""
        groups = self._groups(seen.network, seen.output)
        chosen = [seen.classes, *(maps.mean((2, 3, 4)).argmax(1) for maps in groups[1:])]
        means = [maps_of(maps, index).relu().mean(1, keepdim=True) for maps, index in zip(groups, chosen, strict=True)]
        return _at_one_size(means).mean(1)

    def _groups(self, network: CAMNetwork, output: CAMOutput) -> list[Float[Tensor, "n _ k _ _"]]:
        """All maps of the classes and of each level of parents."""
        classifier = cast(SeveralMaps, network.classifier)
        parents = [output.auxiliary[f"danet_parents{number}"] for number in range(len(self.parents))]
        return [classifier.maps(output.auxiliary["danet_features"]), *parents]


def _at_one_size(groups: Sequence[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n maps side side"]:
    side = max(maps.shape[-1] for maps in groups)
    return torch.cat([enlarged(maps.float(), side, align=True) for maps in groups], 1)


def discrepancy(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """Absolute mean cosine of the K(K - 1)/2 pairs of maps of each image (§3.3): 1 for equal maps, 0 for disjoint."""
    unit = F.normalize(maps.float().flatten(2), dim=2)
    similar = (unit @ unit.transpose(1, 2)).triu(1)
    count = maps.shape[1]
    return similar.sum((1, 2)).abs().mean() / (count * (count - 1) / 2)


@cache
def _hierarchies() -> dict[str, dict[str, list[list[str]]]]:
    text = files("repro.training.comparators").joinpath("hierarchies.yaml").read_text(encoding="utf-8")
    return cast(dict[str, dict[str, list[list[str]]]], yaml.safe_load(text))


def parent_levels(classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Per level the parent of every class, finest level first; empty where no hierarchy is known.

    Birds of CUB have families and orders, garments (Fashion-MNIST and scenes made of it) kinds. A level with one parent
    for all classes, or one for each, teaches nothing and is left out.
    """
    for orders in _hierarchies().values():
        place = {
            name: (f"{order} {number}", order)
            for order, families in orders.items()
            for number, family in enumerate(families)
            for name in family
        }
        keys = [name[:3] if name[:3] in place else name for name in classes]
        if all(key in place for key in keys):
            levels = [[place[key][depth] for key in keys] for depth in (0, 1)]
            numbered = [tuple(list(dict.fromkeys(level)).index(name) for name in level) for level in levels]
            return tuple(dict.fromkeys(level for level in numbered if 1 < len(set(level)) < len(classes)))
    return ()
