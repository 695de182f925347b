"""CCAM and NL-CCAM: maps of all classes combined, and non-local blocks (Yang et al., WACV 2020)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from repro.models.cam_network import CAMNetwork, add_after, pools_and_end
from repro.models.non_local import NonLocalBlock
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings
from repro.training.ingredients import Ingredient, SeenBatch


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
