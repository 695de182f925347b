"""Ten-crop classification and class errors of the localisation tables."""

from collections.abc import Callable
from typing import Literal

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
    average softmax outputs (digest: EGA §5). Raises ValueError if the images are smaller than the crop.
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
    """Whether the true class is among the k best; what `Top1Loc` and `Top5Loc` take."""
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k is {k}, expected 1 … {scores.shape[1]} (the number of classes)")
    return (scores.topk(k, dim=1).indices == target[:, None]).any(dim=1)


class ClassificationError(MulticlassAccuracy):
    """Top-k error over all images in percent: 100 · (1 - accuracy)."""

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes, top_k=top_k, average="micro")

    def compute(self) -> Float[Tensor, ""]:
        """Percent, in [0, 100]."""
        return 100 * (1 - super().compute())
