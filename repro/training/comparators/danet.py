"""DANet: divergent activation by a class hierarchy and by several maps per class (Xue et al., ICCV 2019)."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from repro.data.hierarchies import parent_levels
from repro.losses.ega import Reduction, ega_loss
from repro.models.cam_network import CAMNetwork, CAMOutput
from repro.training.batches import Batch
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, StepContext


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
