"""ACoL: a second classifier learns from what the first one leaves (Zhang et al., CVPR 2018)."""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from repro.losses.ega import Reduction, ega_loss
from repro.losses.entropy import unit_range
from repro.models.cam_network import CAMNetwork, CAMOutput, pooled_maps
from repro.training.batches import Batch
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, SeenBatch, StepContext


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
