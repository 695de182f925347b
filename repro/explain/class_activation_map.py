"""What all explainers share: Captum's interface, the layer check, ReLU and upsampling."""

from abc import abstractmethod

import torch.nn.functional as F
from captum.attr import LayerAttribution
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.layer_activation import Reshape, Target, tokens_to_grid


def upsample_map(maps: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Bilinear interpolation with cell centres as reference (align_corners=False), as OpenCV resizes."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class ClassActivationMap(LayerAttribution):
    """A class activation map of one layer, in Captum's `LayerAttribution` convention.

    Args:
        model: returns logits `(n, classes)`; explained in evaluation mode and left exactly as found.
        layer: a submodule that runs once per forward pass and returns `(n, c, h, w)` or `(n, tokens, c)`.
        reshape: turns the layer's activation into `(n, c, h, w)`; default: token grids are detected, a
            class token is dropped (`tokens_to_grid`).

    Raises:
        ValueError: `layer` is no submodule of `model`.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, *, reshape: Reshape | None = None) -> None:
        if not any(module is layer for module in model.modules()):
            raise ValueError(f"layer {type(layer).__name__} is no submodule of {type(model).__name__}")
        super().__init__(model, layer)
        self.reshape: Reshape = reshape or tokens_to_grid

    @abstractmethod
    def attribute(self, inputs: Float[Tensor, "n c h w"], target: Target = None) -> Float[Tensor, "n 1 h w"]:
        """Map of each image for its target (None: the predicted class), at input size, >= 0, unnormalised."""
