"""EGA's classification term: cross-entropies on clean and adversarial images (eq. 6)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from repro.losses.attack import Target

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
