"""CutMix: a box of each image is replaced by that of another, labels in proportion (Yun et al., ICCV 2019)."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from repro.training.batches import Batch, own_share, whole_batch
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, StepContext


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
