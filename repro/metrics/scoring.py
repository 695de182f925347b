"""Scoring altered images: the class score in both spaces, and what stands behind the parts that are hidden."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from repro.data.normalisation import Normalisation

ScoreSpace = Literal["probability", "logit"]
"""`probability`: after the softmax over classes; `logit`: the network's raw output."""

Background = Literal["mean", "black", "blur"]
"""`mean`: zero in the normalised image, so the mean colour; `black`: a zero pixel; `blur`: the blurred image."""

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0
"""Gaussian in pixels, as in RISE's insertion experiments."""


@dataclass(frozen=True)
class ClassScores:
    """The score of one class per image, in both spaces; all of one shape."""

    logit: Float[Tensor, "*images"]
    probability: Float[Tensor, "*images"]

    def in_space(self, space: ScoreSpace) -> Float[Tensor, "*images"]:
        """The scores in one space; probabilities are 0..1."""
        return self.probability if space == "probability" else self.logit


def require_evaluation_mode(model: nn.Module) -> None:
    """Raise `ValueError` for a model in training mode, whose scores depend on chance and on the batch."""
    if any(module.training for module in model.modules()):
        raise ValueError("model: (partly) in training mode; call model.eval() first, scores would depend on the batch")


def require_normalised(inputs: Tensor, maps: Tensor) -> None:
    """Raise `ValueError` for stored pixels instead of normalised images, or another number of maps than of images."""
    if not inputs.is_floating_point():
        raise ValueError(f"inputs: dtype {inputs.dtype}; expected normalised images, see Normalisation.apply")
    if len(inputs) != len(maps):
        raise ValueError(f"maps: for {len(maps)} images, but {len(inputs)} were given")


@torch.no_grad()
def predict(model: nn.Module, inputs: Float[Tensor, "n c h w"], batch_size: int) -> Float[Tensor, "n classes"]:
    """Logits of `inputs` in float32, `batch_size` images at a time; `ValueError` for a batch size below 1."""
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; expected at least 1")
    return torch.cat([model(chunk).float() for chunk in inputs.split(batch_size)])


def select_class(logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> ClassScores:
    """Each image's score of its class `target`."""
    column = target[:, None]
    return ClassScores(logits.gather(1, column)[:, 0], logits.softmax(dim=1).gather(1, column)[:, 0])


def resolve_target(target: Int[Tensor, " n"] | None, logits: Float[Tensor, "n classes"]) -> Int[Tensor, " n"]:
    """`target` on the device of `logits`, or the predicted classes where it is None.

    Raises:
        ValueError: not one class per image, or a class the network does not have.
    """
    if target is None:
        return logits.argmax(dim=1)
    images, classes = logits.shape
    if target.shape != (images,):
        raise ValueError(f"target: shape {tuple(target.shape)}; expected one class per image, ({images},)")
    if not bool(((target >= 0) & (target < classes)).all()):
        raise ValueError(f"target: classes {int(target.min())}..{int(target.max())}; the network has 0..{classes - 1}")
    return target.to(logits.device)


def background_of(
    inputs: Float[Tensor, "n 3 h w"], background: Background, normalisation: Normalisation | None
) -> Float[Tensor, "n 3 h w"]:
    """What shows where an image is hidden, in normalised values.

    Raises:
        ValueError: `black` without a `normalisation`, or an image too small for the blur.
    """
    if background == "mean":
        return torch.zeros_like(inputs)
    if background == "black":
        if normalisation is None:
            raise ValueError("normalisation: None; background='black' needs the one that made the inputs")
        return normalisation.black(inputs.device).to(inputs.dtype).expand_as(inputs)
    size, smallest = tuple(inputs.shape[-2:]), BLUR_KERNEL // 2 + 1
    if min(size) < smallest:
        raise ValueError(f"inputs: {size} pixels; background='blur' needs at least {smallest} in each direction")
    return gaussian_blur(inputs, [BLUR_KERNEL, BLUR_KERNEL], [BLUR_SIGMA, BLUR_SIGMA])


@torch.no_grad()
def score_in_batches(
    model: nn.Module,
    compose: Callable[[Int[Tensor, " k"]], Float[Tensor, "k 3 h w"]],
    targets: Int[Tensor, " total"],
    batch_size: int,
) -> ClassScores:
    """Scores of `total` composed images that are never all in memory.

    Args:
        model: in evaluation mode.
        compose: makes the images of the given indices into 0..total−1.
        targets: the class whose score is wanted, per image.
        batch_size: images per forward pass.
    """
    chunks = [
        select_class(model(compose(index)).float(), targets[index])
        for index in torch.arange(len(targets), device=targets.device).split(batch_size)
    ]
    return ClassScores(torch.cat([chunk.logit for chunk in chunks]), torch.cat([chunk.probability for chunk in chunks]))
