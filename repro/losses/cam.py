"""Shannon entropy of class activation maps (EGA §3.3, eq. 7) in every reading of its undefined probability P_CAM."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from repro.losses.attack import Target

EntropyForm = Literal["minmax", "minmax_sum", "class_softmax", "spatial_softmax", "sigmoid", "binary", "released"]
"""Readings of P_CAM and of the sum in eq. 7; see `cam_entropy`."""

TINY = 1e-30
"""Added inside the logarithm so that its slope at p = 0 stays finite; the value ADVENT and the release use."""


def cam_entropy(
    maps: Float[Tensor, "n classes h w"], labels: Int[Tensor, " n"], form: EntropyForm = "minmax"
) -> Float[Tensor, ""]:
    """Entropy of the class activation maps, averaged over images, in bits (EGA eq. 7).

    The paper leaves P_CAM undefined; `form` chooses among the readings of the ledger (`ega.entropy.p_cam`):

    - `minmax` (default): p is the map of the image's class scaled to [0, 1]; mean of -p log2 p over pixels. The
      released function with its gradient restored. Minimising it pushes pixels above 1/e of the range up, others down.
    - `minmax_sum`: the same summed over pixels, eq. 7 to the letter.
    - `class_softmax`: softmax over classes at every pixel, entropy over classes divided by log2(classes), mean over
      pixels: ADVENT, which EGA cites as [21].
    - `spatial_softmax`: softmax over the pixels of the class map, entropy over pixels.
    - `sigmoid`: p is the sigmoid of the class map; mean of -p log2 p.
    - `binary`: p as in `minmax`; mean of -p log2 p - (1-p) log2(1-p). The border is 1/2.
    - `released`: the value of `minmax` without gradient, as the released code computes it.

    A constant map has entropy 0 and gradient 0 under the min–max forms.

    Raises:
        ValueError: `form` is unknown.
    """
    maps = maps.float()
    chosen = maps[torch.arange(len(maps), device=maps.device), labels]
    if form == "minmax":
        return _bits(unit_range(chosen)).mean()
    if form == "minmax_sum":
        return _bits(unit_range(chosen)).sum((1, 2)).mean()
    if form == "class_softmax":
        return _bits(maps.softmax(1)).sum(1).mean() / math.log2(max(maps.shape[1], 2))
    if form == "spatial_softmax":
        return _bits(chosen.flatten(1).softmax(1)).sum(1).mean()
    if form == "sigmoid":
        return _bits(chosen.sigmoid()).mean()
    if form == "binary":
        probability = unit_range(chosen)
        return (_bits(probability) + _bits(1 - probability)).mean()
    if form == "released":
        return _bits(unit_range(chosen.detach())).mean()
    raise ValueError(f"form is {form!r}; choose one of {', '.join(get_args(EntropyForm))}")


def unit_range(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Every map scaled to [0, 1]; a constant one becomes 0. Gradients run through minimum and maximum too."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)


def _bits(probability: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """-p log2 p per element."""
    return -probability * torch.log2(probability + TINY)


# EGA's classification term: cross-entropies on clean and adversarial images (eq. 6).

Reduction = Literal["sum", "mean"]
"""`sum`: the losses of the views are added, eq. 6; `mean`: averaged, as AdvProp's one loss over both halves."""


def ega_loss(
    views: Sequence[Float[Tensor, "n classes"]], target: Target, reduction: Reduction = "sum"
) -> Float[Tensor, ""]:
    """L(x) + L(x + ε): the cross-entropies of the logits of each view of one batch (EGA eq. 6).

    With one view it is the plain cross-entropy. The entropies of eq. 8 are added by the caller, with their weights.

    Raises:
        ValueError: `reduction` is unknown.
    """
    losses = torch.stack([F.cross_entropy(logits, target) for logits in views])
    if reduction == "sum":
        return losses.sum()
    if reduction == "mean":
        return losses.mean()
    raise ValueError(f"reduction is {reduction!r}; choose 'sum' or 'mean'")
