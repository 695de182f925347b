"""Fréchet distance between two sets of feature vectors."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of the Gaussians fitted to two samples (Dowson and Landau 1982).

    Args:
        first, second: feature vectors; more rows than columns, or the covariances are singular and the distance is
            biased upwards. Computed in double precision.

    Returns:
        The squared 2-Wasserstein distance, >= 0, in squared feature units; the quantity that FID reports.

    Raises:
        ValueError: fewer than two rows, or different numbers of columns.
    """
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"first is {tuple(first.shape)}, second {tuple(second.shape)}: expected at least 2 rows and equal columns"
        )
    one, other = first.double(), second.double()
    gap = (one.mean(0) - other.mean(0)).square().sum()
    size = (one.shape[1], one.shape[1])  # `torch.cov` of one column is a number
    cov_one, cov_other = torch.cov(one.T).reshape(size), torch.cov(other.T).reshape(size)
    root = _square_root(cov_one)
    # The eigenvalues of Σ₁Σ₂ are those of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    values = torch.linalg.eigvalsh(root @ cov_other @ root).clamp(min=0)
    return max(0.0, (gap + cov_one.trace() + cov_other.trace() - 2 * values.sqrt().sum()).item())


def _square_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
