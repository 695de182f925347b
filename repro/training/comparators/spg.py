"""SPG: masks of earlier layers learn from seeds that later ones produce (Zhang et al., ECCV 2018)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from repro.losses.entropy import unit_range
from repro.models.cam_network import CAMNetwork, CAMOutput, stage_channels
from repro.training.batches import Batch
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, StepContext

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
