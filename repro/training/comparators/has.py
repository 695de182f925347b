"""HaS, hide-and-seek: patches of the training images are hidden at random (Singh and Lee, ICCV 2017)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from repro.training.batches import Batch
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, StepContext

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
