"""Cross-entropy objectives of E and C (DFG, eqs. 3, 4, 4a–4c) and class weights for imbalanced data.

Every function takes any number of leading replica axes.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import log_softmax


def sample_cross_entropy(logits: Float[Tensor, "*r n k"], labels: Int[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    """−y log softmax(logits) of each sample, in nats."""
    return -log_softmax(logits, dim=-1).gather(-1, labels[..., None]).squeeze(-1)


def classification_loss(
    logits: Float[Tensor, "*r n k"],
    labels: Int[Tensor, "*r n"],
    class_weights: Float[Tensor, "*r k"] | None = None,
) -> Float[Tensor, "*r"]:
    """Mean cross-entropy: L_E (eq. 3) and L_rC (4a) on real, L_gC (4b) on generated, L_cC (4c) on merged features.

    With `class_weights`, the weighted mean Σ w_y·loss / Σ w_y (as `torch.nn.CrossEntropyLoss(weight=…)`).
    """
    losses = sample_cross_entropy(logits, labels)
    if class_weights is None:
        return losses.mean(-1)
    weights = class_weights.gather(-1, labels)
    return (weights * losses).sum(-1) / weights.sum(-1)


def classifier_objective(
    real: Float[Tensor, "*r"],
    generated: Float[Tensor, "*r"],
    merged: Float[Tensor, "*r"],
    coefficients: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3),
) -> Float[Tensor, "*r"]:
    """L_C = α·L_rC + β·L_gC + γ·L_cC (eq. 4), α + β + γ = 1.

    The paper prints β·L_rC, which would leave (4b) unused; the released code weights the generated features.
    For a classifier without batch norm the merged term is the mean of the other two when both batches have one
    size, so the three-way weighting is (α + γ/2)·L_rC + (β + γ/2)·L_gC.

    Raises:
        ValueError: if the coefficients do not sum to one (within 0.5 %, since the paper prints 0.333).
    """
    if abs(sum(coefficients) - 1) > 5e-3:
        raise ValueError(f"coefficients={coefficients} (α, β, γ) must sum to 1, they sum to {sum(coefficients):.4g}")
    alpha, beta, gamma = coefficients
    return alpha * real + beta * generated + gamma * merged


def inverse_frequency_weights(counts: Int[Tensor, "*r k"]) -> Float[Tensor, "*r k"]:
    """Plain re-weighting: w_k ∝ 1 / count_k, scaled to sum to the number of classes; 0 for an absent class."""
    return _to_mean_one((counts.clamp(min=1).double().reciprocal()) * (counts > 0))


def class_balanced_weights(counts: Int[Tensor, "*r k"], beta: float = 0.999) -> Float[Tensor, "*r k"]:
    """Class-balanced loss (Cui et al. 2019, eq. 3): w_k ∝ (1 − β) / (1 − β^count_k), scaled to sum to k.

    β is in [0, 1); β = 0 gives equal weights, β → 1 the inverse frequency. An absent class has weight 0.

    Raises:
        ValueError: if β is outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} must be in [0, 1); Cui et al. use 0.9, 0.99, 0.999 and 0.9999")
    effective = (1 - beta ** counts.clamp(min=1).double()) / (1 - beta)
    return _to_mean_one(effective.reciprocal() * (counts > 0))


def _to_mean_one(weights: Tensor) -> Tensor:
    return (weights * weights.shape[-1] / weights.sum(-1, keepdim=True)).float()
