"""CCAM and NL-CCAM: maps of all classes combined, and non-local blocks (Yang et al., WACV 2020)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from repro.models.cam_network import CAMNetwork, after_last_stages
from repro.models.non_local import NonLocalBlock
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings
from repro.training.ingredients import Ingredient, SeenBatch


@dataclass(frozen=True)
class CombinedMaps(Ingredient):
    """Localises with a weighted sum of the maps of all classes, probable ones positive, improbable ones negative."""

    power: int

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"]:
        """Σ_k γ(k)·M_(class of rank k)."""
        return combine_maps(seen.output.maps, seen.output.logits, seen.classes, self.power)


@dataclass(frozen=True)
class NonLocalBlocks(Ingredient):
    """Non-local blocks behind the last two pools and the last stage (inferred; the paper places them by backbone)."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the blocks; they start as the identity."""
        after_last_stages(network, NonLocalBlock)
        return network


class CCAMSettings(BorrowsTraining):
    """CCAM: plain CAM training, other maps.

    Inferred: the paper describes a combination function over class ranks, positive for probable and negative for
    improbable classes; its exact polynomial could not be verified, so γ(k) is the simplest odd one.
    """

    power: int = Field(default=3, ge=1)
    """Odd degree of γ. Inferred."""

    def ingredients(self) -> list[Ingredient]:
        """Combined maps."""
        return [CombinedMaps(self.power)]


class NLCCAMSettings(ComparatorSettings):
    """NL-CCAM: non-local blocks while training, combined maps when localising."""

    power: int = Field(default=3, ge=1)
    """As in `CCAMSettings`."""

    def ingredients(self) -> list[Ingredient]:
        """Blocks and combined maps."""
        return [NonLocalBlocks(), CombinedMaps(self.power)]


def rank_weights(classes: int, power: int) -> Float[Tensor, " classes"]:
    """γ(k) = (1 − 2(k − 1)/(C − 1))^power: 1 for the most, −1 for the least probable class; 1 for a single class.

    Raises:
        ValueError: `power` is even, which would make improbable classes count as much as probable ones.
    """
    if power % 2 == 0:
        raise ValueError(f"power is {power}; give an odd number")
    return torch.linspace(1, -1, classes) ** power if classes > 1 else torch.ones(1)


def combine_maps(
    maps: Float[Tensor, "n classes h w"], logits: Float[Tensor, "n classes"], first: Int[Tensor, " n"], power: int
) -> Float[Tensor, "n h w"]:
    """Weighted sum of all maps by rank of their logit; the class to localise is put first, whatever its rank."""
    ranked = logits.scatter(1, first[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    weights = torch.empty_like(logits)
    weights.scatter_(1, ranked, rank_weights(logits.shape[1], power).to(logits).expand_as(logits).contiguous())
    return (weights[:, :, None, None] * maps).sum(1)
