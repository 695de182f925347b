"""Classification metrics for imbalanced training: top-1 accuracy and macro recall, any number of replicas at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
