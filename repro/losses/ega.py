"""EGA's objective: cross-entropies on clean and adversarial images (eq. 6) and entropies of their maps (eq. 8)."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from repro.losses.attack import Target

Reduction = Literal["sum", "mean"]
"""How the losses of the clean and the adversarial half are put together."""


def ega_loss(
    clean_logits: Float[Tensor, "n classes"],
    adversarial_logits: Float[Tensor, "n classes"],
    target: Target,
    clean_entropy: Float[Tensor, ""] | float = 0.0,
    adversarial_entropy: Float[Tensor, ""] | float = 0.0,
    weights: tuple[float, float] = (1.0, 0.01),
    reduction: Reduction = "sum",
) -> Float[Tensor, ""]:
    """L(x) + L(x + ε) + λ_clean · entropy + λ_adv · entropy (EGA eq. 8).

    Eq. 6 sums the two cross-entropies; `reduction="mean"` averages them, as AdvProp's one loss over both halves.
    The entropies are weighted and added in either case (Table 7 chose λ = (1, 0.01)).

    Raises:
        ValueError: `reduction` is unknown.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}; choose 'sum' or 'mean'")
    both = F.cross_entropy(clean_logits, target) + F.cross_entropy(adversarial_logits, target)
    classification = both if reduction == "sum" else both / 2
    return classification + weights[0] * clean_entropy + weights[1] * adversarial_entropy
