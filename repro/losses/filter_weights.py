"""Class-wise filter weights of DFG: eqs. (5), (6), (7) and the threshold of Algorithm 1.

E runs twice (with its last convolution as it is and with all its filters at zero), C runs on n_f masked copies:
channel j of the features is replaced by what it becomes without filter j. This equals zeroing one filter at a time.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from repro.losses.classification import sample_cross_entropy
from repro.models.split_classifier import FeatureExtractor

ThresholdUnit = Literal["filters", "classes"]


@torch.no_grad()
def sample_filter_weights(
    extractor: FeatureExtractor,
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    inverted: bool = False,
    keep_bias: bool = False,
) -> Float[Tensor, "n f"]:
    """W_j(E, x, y) = softmax_j[loss without filter j − loss with it] (eq. 5): an important filter has a high weight.

    Args:
        extractor: E, in evaluation mode.
        classifier: C, features to logits, in evaluation mode.
        images: network inputs.
        labels: their classes.
        inverted: take loss with − loss without, as the released code does; important filters then have *low* weights.
        keep_bias: remove a filter's weights only and leave its bias (released code).
    """
    features = extractor(images)
    silent = extractor.without_filters(images, keep_bias)
    base = sample_cross_entropy(classifier(features), labels)

    def loss_without(removed: Tensor) -> Tensor:
        return sample_cross_entropy(classifier(torch.where(removed[:, None, None], silent, features)), labels)

    filters = features.shape[1]
    masks = torch.eye(filters, dtype=torch.bool, device=features.device)
    # At most eight masked copies at a time: 256 copies of ResNet features would not fit any device.
    increase = torch.vmap(loss_without, chunk_size=min(8, filters))(masks).T - base[:, None]
    return torch.softmax(-increase if inverted else increase, dim=-1)


def class_filter_weights(
    sample_weights: Float[Tensor, "n f"], labels: Int[Tensor, "n"], classes: int
) -> Float[Tensor, "k f"]:
    """W_j(E, c) = n_f · mean over the samples of class c (eq. 6, whose sum over i is missing in print).

    Every row has mean 1. A class without samples gets equal weights.
    """
    filters = sample_weights.shape[1]
    counts = torch.bincount(labels, minlength=classes)[:, None]
    sums = torch.zeros(classes, filters, dtype=sample_weights.dtype, device=sample_weights.device)
    sums.index_add_(0, labels, sample_weights)
    return torch.where(counts > 0, filters * sums / counts.clamp(min=1), torch.ones_like(sums))


def blend_filter_weights(
    source: Float[Tensor, "*r k f"], target: Float[Tensor, "*r k f"], rho: float
) -> Float[Tensor, "*r k f"]:
    """ρ·W(E_S) + (1 − ρ)·W(E) (eq. 7).

    Raises:
        ValueError: if ρ is outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho={rho} must be in [0, 1]; 1 keeps the source weights, 0 the target weights")
    return rho * source + (1 - rho) * target


def active_filters(
    weights: Float[Tensor, "*r k f"], threshold: float = 0.95, unit: ThresholdUnit = "filters"
) -> Bool[Tensor, "*r k f"]:
    """Which filters stay active: those whose weight exceeds δ times the mean weight (Section 3.2).

    Weights are in the units of eq. (6), mean 1. `unit="classes"` is the literal δ/n_l of Algorithm 1, lines 4 and 24,
    which compares the raw softmax with δ over the number of *classes*: for VGG-16 (64 filters, 10 classes) it
    switches every filter off unless one has 6 times its share.
    """
    filters, classes = weights.shape[-1], weights.shape[-2]
    return weights > (threshold if unit == "filters" else threshold * filters / classes)
