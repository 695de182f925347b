"""Classification: ten crops, top-k, error, and for imbalanced training accuracy, macro recall and Fréchet distance."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.v2.functional import ten_crop


def ten_crop_scores(
    classify: Callable[[Float[Tensor, "m 3 s s"]], Float[Tensor, "m classes"]],
    images: Float[Tensor, "n 3 h w"],
    *,
    size: int = 224,
    average: Literal["probability", "logit"] = "probability",
) -> Float[Tensor, "n classes"]:
    """Class scores averaged over four corner crops, the centre crop and their mirror images.

    `classify` maps image batches to logits. EGA, ACoL and DANet squash images to 256 x 256, crop 224 and
    average softmax outputs (EGA §4.2). Raises ValueError if the images are smaller than the crop.

    Example:
        >>> ten_crop_scores(lambda crop: crop.mean((2, 3)), torch.ones(1, 3, 4, 4), size=2, average="logit").tolist()
        [[1.0, 1.0, 1.0]]
    """
    if min(images.shape[-2:]) < size:
        raise ValueError(f"images are {tuple(images.shape[-2:])} pixels, expected at least {size} x {size}")
    if average not in ("probability", "logit"):
        raise ValueError(f"average is {average!r}, expected 'probability' or 'logit'")
    total: Tensor | None = None
    for crop in ten_crop(images, [size, size]):
        logits = classify(crop)
        scores = logits.softmax(dim=1) if average == "probability" else logits
        total = scores if total is None else total + scores
    assert total is not None
    return total / 10


def top_k_correct(scores: Float[Tensor, "n classes"], target: Int[Tensor, " n"], k: int = 1) -> Bool[Tensor, " n"]:
    """Whether the true class is among the k best; what `Top1Loc` and `Top5Loc` take.

    Raises ValueError for a k outside 1 … number of classes, and for scores that are NaN or infinite.

    Example:
        >>> top_k_correct(torch.tensor([[0.1, 0.9], [0.1, 0.9]]), torch.tensor([0, 1])).tolist()
        [False, True]
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}, expected 1 … {scores.shape[1]} (the number of classes)")
    finite = scores.isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"scores[{first}] holds NaN or infinity; check the network that made it for overflow")
    return (scores.topk(k, dim=1).indices == target[:, None]).any(dim=1)


class ClassificationError(MulticlassAccuracy):
    """Top-k error over all images in percent: 100 · (1 - accuracy).

    Example:
        >>> metric = ClassificationError(2); metric.update(torch.eye(2), torch.tensor([0, 0])); float(metric.compute())
        50.0
    """

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes, top_k=top_k, average="micro")

    def compute(self) -> Float[Tensor, ""]:
        """Percent, in [0, 100]."""
        return 100 * (1 - super().compute())


def frechet_distance(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of the Gaussians fitted to two samples (Dowson and Landau 1982).

    Args:
        first, second: feature vectors; more rows than columns, or the covariances are singular and the distance is
            biased upwards. Computed in double precision.

    Returns:
        The squared 2-Wasserstein distance, >= 0, in squared feature units; the quantity that FID reports.

    Raises:
        ValueError: fewer than two rows, or different numbers of columns.

    Example:
        >>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])), 6)  # means 1 and 4
        9.0
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


# Imbalanced training: any number of replicas at once.


def confusion_counts(
    predictions: Int[Tensor, "*r n"], labels: Int[Tensor, " n"], classes: int
) -> Int[Tensor, "*r k k"]:
    """Confusion matrix: entry [i, j] counts images of class i predicted as class j.

    Example:
        >>> confusion_counts(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    replicas = predictions.shape[:-1]
    flat = predictions.reshape(-1, predictions.shape[-1])
    cells = labels * classes + flat
    offsets = torch.arange(len(flat), device=flat.device)[:, None] * classes**2
    counts = torch.bincount((cells + offsets).flatten(), minlength=len(flat) * classes**2)
    return counts.reshape(*replicas, classes, classes)


def top1_accuracy(confusion: Int[Tensor, "*r k k"]) -> Float[Tensor, "*r"]:
    """Σ_i C_ii / Σ C: share of correct predictions, in percent.

    Example:
        >>> top1_accuracy(torch.tensor([[1, 1], [0, 2]])).item()
        75.0
    """
    return 100 * confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / confusion.sum((-2, -1))


def macro_recall(confusion: Int[Tensor, "*r k k"]) -> Float[Tensor, "*r"]:
    """mean_i C_ii / Σ_j C_ij over the classes that occur, in percent; top-1 accuracy where classes are of one size.

    Example:
        >>> macro_recall(torch.tensor([[3, 1], [0, 2]])).item()
        87.5
    """
    support = confusion.sum(-1)
    recall = confusion.diagonal(dim1=-2, dim2=-1) / support.clamp(min=1)
    return 100 * recall.sum(-1) / (support > 0).sum(-1)
