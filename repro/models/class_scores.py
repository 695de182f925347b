"""Which class is asked about, and the network's score of it: one notion for explainers and metrics."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

ScoreSpace = Literal["probability", "sigmoid", "logit"]
"""`probability`: softmax over the classes; `sigmoid`: of the class's own logit (multi-label heads, one-logit heads);
`logit`: the network's output as it is."""

Target = int | np.integer | Sequence[int] | np.ndarray | Tensor | None
"""One class for all images, one per image (list, array, tensor), or None: the predicted class of each image."""

_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class ClassScores:
    """The score of one class per image, from which every score space follows; all of one shape.

    Attributes:
        logit: the network's output for the class.
        probability: the softmax over the classes, 0..1.
        classes: number of classes of the network.
    """

    logit: Float[Tensor, "*shape"]
    probability: Float[Tensor, "*shape"]
    classes: int

    def in_space(self, space: ScoreSpace) -> Float[Tensor, "*shape"]:
        """The scores in one space.

        Raises:
            ValueError: softmax over a single class, which is 1 for every image; or an unknown space.
        """
        if space == "probability" and self.classes == 1:
            raise ValueError(
                "score_space: 'probability' is a softmax over classes, and this network has one output: every image "
                "would score 1. Use score_space='sigmoid' or 'logit'"
            )
        if space == "logit":
            return self.logit
        if space == "sigmoid":
            return self.logit.sigmoid()
        if space == "probability":
            return self.probability
        raise ValueError(f"score_space: {space!r} is unknown; choose 'probability', 'sigmoid' or 'logit'")


def class_scores(logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> ClassScores:
    """Each image's score of its class `target`, shape (n,)."""
    column = target[:, None]
    return ClassScores(logits.gather(1, column)[:, 0], logits.softmax(dim=1).gather(1, column)[:, 0], logits.shape[1])


def as_classes(target: Target, images: int, device: torch.device | None = None) -> Int[Tensor, " n"] | None:
    """`target` as one class index per image; None stays None (the predicted class).

    >>> as_classes(3, images=2)
    tensor([3, 3])

    Raises:
        ValueError: no whole numbers, or another number of targets than of images.
    """
    if target is None:
        return None
    try:
        indices = torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target: {_short(target)}; expected class indices (integers) or None") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"target: dtype {indices.dtype}; expected class indices (integers)")
    if indices.ndim == 0 or (indices.ndim == 1 and len(indices) == 1 and images == 1):
        indices = indices.reshape(1).expand(images)
    if indices.shape != (images,):
        raise ValueError(
            f"target: shape {tuple(indices.shape)} for {images} images; give one class per image, or one for all"
        )
    return indices.long().clone()


def resolve_target(target: Target, logits: Float[Tensor, "n classes"]) -> Int[Tensor, " n"]:
    """Class index per image on the device of `logits`: as given, or (None) the predicted class.

    Raises:
        ValueError: not one class per image, or a class that the network does not have.
    """
    images, classes = logits.shape
    indices = as_classes(target, images, logits.device)
    if indices is None:
        return logits.argmax(dim=1)
    if images and not 0 <= int(indices.min()) <= int(indices.max()) < classes:
        raise ValueError(
            f"target: classes {int(indices.min())}..{int(indices.max())} lie outside the network's 0..{classes - 1}"
        )
    return indices


def sum_to_one(outputs: Float[Tensor, "n classes"]) -> bool:
    """Whether outputs look like probabilities: the network ends in a softmax."""
    positive = outputs.shape[1] > 1 and bool((outputs >= 0).all())
    return positive and bool(((outputs.sum(dim=1) - 1).abs() < _SUMS_TO_ONE).all())


def warn_of_second_softmax() -> None:
    """Say that `score_space="probability"` takes a softmax of a softmax."""
    warnings.warn(
        "the network's outputs already sum to one: score_space='probability' takes a second softmax of them. Explain "
        "the network without its softmax, or use score_space='logit' to take its outputs as they are",
        stacklevel=3,
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
