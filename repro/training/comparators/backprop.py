"""Backprop: boxes from the gradient of the class score (Simonyan, Vedaldi and Zisserman, ICLR workshop 2014)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from repro.models.cam_network import CAMNetwork
from repro.training.comparators.settings import BorrowsTraining
from repro.training.ingredients import Ingredient, SeenBatch

_ITERATIONS = 5


@dataclass(frozen=True)
class GradientSegments(Ingredient):
    """Localises with a colour segmentation whose seeds come from the saliency map (§3.2)."""

    foreground: float
    background: float

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n height width"]:
        """1 on the object, 0 elsewhere, at the size of the images."""
        found = saliency(seen.network, seen.images, seen.classes)
        return torch.stack(
            [
                segment(image, one, self.foreground, self.background)
                for image, one in zip(seen.images.float().cpu(), found.float().cpu(), strict=True)
            ]
        ).to(seen.images.device)


class BackpropSettings(BorrowsTraining):
    """Backprop: plain CAM training; boxes from the gradient."""

    foreground: float = Field(default=0.95, gt=0, lt=1)
    """Saliency above this quantile of the image is object. Stated: 95 %, §3.2."""
    background: float = Field(default=0.30, gt=0, lt=1)
    """Saliency below this quantile is background. Stated: 30 %, §3.2."""

    def ingredients(self) -> list[Ingredient]:
        """Segments of the gradient."""
        return [GradientSegments(self.foreground, self.background)]


def saliency(
    network: CAMNetwork, images: Float[Tensor, "n 3 h w"], classes: Int[Tensor, " n"]
) -> Float[Tensor, "n h w"]:
    """Largest absolute gradient over the channels of the score of `classes` (§3.1); also inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = images.clone().requires_grad_()
        scores = network(inputs).gather(1, classes.clone()[:, None]).sum()
        (gradient,) = torch.autograd.grad(scores, inputs)
    return gradient.abs().amax(1)


def segment(
    image: Float[Tensor, "3 h w"], salient: Float[Tensor, "h w"], foreground: float, background: float
) -> Float[Tensor, "h w"]:
    """GrabCut with the salient pixels as object and the least salient as background; all 0 for a constant saliency.

    The paper uses the graph cut of Boykov and Jolly with Gaussian mixtures as colour models, which GrabCut iterates.
    Colours are those of the normalised image stretched to 0…255; the models do not mind an affine change.
    """
    high, low = torch.quantile(salient.flatten(), torch.tensor([foreground, background])).tolist()
    if high <= low:
        return torch.zeros_like(salient)
    marks = np.full(salient.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    marks[(salient >= high).numpy()] = cv2.GC_FGD
    marks[(salient < low).numpy()] = cv2.GC_BGD
    span = (image.amax() - image.amin()).clamp(min=1e-6)
    pixels = ((image - image.amin()) / span * 255).byte().permute(1, 2, 0).contiguous().numpy()
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(pixels, marks, (0, 0, 0, 0), *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy(np.isin(marks, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32))
