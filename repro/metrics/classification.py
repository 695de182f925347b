"""Fréchet distance between two sets of feature vectors."""

import torch
from jaxtyping import Float, Int
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


# Classification metrics for imbalanced training: top-1 accuracy and macro recall, any number of replicas at once.


def confusion_counts(
    predictions: Int[Tensor, "*r n"], labels: Int[Tensor, " n"], classes: int
) -> Int[Tensor, "*r k k"]:
    """Confusion matrix: entry [i, j] counts images of class i predicted as class j."""
    replicas = predictions.shape[:-1]
    flat = predictions.reshape(-1, predictions.shape[-1])
    cells = labels * classes + flat
    offsets = torch.arange(len(flat), device=flat.device)[:, None] * classes**2
    counts = torch.bincount((cells + offsets).flatten(), minlength=len(flat) * classes**2)
    return counts.reshape(*replicas, classes, classes)


def top1_accuracy(confusion: Int[Tensor, "*r k k"]) -> Float[Tensor, "*r"]:
    """Share of correct predictions, in percent."""
    return 100 * confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def macro_recall(confusion: Int[Tensor, "*r k k"]) -> Float[Tensor, "*r"]:
    """Recall averaged over the classes that occur, in percent; equals top-1 accuracy on a balanced test set."""
    support = confusion.sum(-1)
    recall = confusion.diagonal(dim1=-2, dim2=-1) / support.clamp(min=1)
    return 100 * recall.sum(-1) / (support > 0).sum(-1)
