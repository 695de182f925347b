"""Grad-CAM and its relatives: maps weighted by the gradient of the class logit at one layer.

Notation: activation A (n, k, h, w), gradient g = ∂y^c/∂A, S_k = Σ_ab A_ab. Gradients are taken to the
activation only: none is computed for a parameter, and nothing before the layer is differentiated. All
divisions are masked where their denominator is zero; no epsilon is added anywhere (an epsilon of 1e-6 is as
large as 2g² on ResNet-18's last stage and turns Grad-CAM++ into another method: digest §1.3).
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from repro.explain.layer import (
    ClassActivationMap,
    Target,
    evaluation_mode,
    forward_with_activation,
    resolve_target,
    run_in_shrinking_batches,
    slice_target,
    upsample_map,
)

Grid = Float[Tensor, "n k h w"]
ChannelWeights = Float[Tensor, "n k 1 1"]


def gradcam_weights(gradient: Grid) -> ChannelWeights:
    """Grad-CAM: the mean gradient of each channel (ScoreCAM++ paper eq. 2; Selvaraju 2017 eq. 1)."""
    return gradient.mean(dim=(2, 3), keepdim=True)


def gradcam_plus_plus_weights(activation: Grid, gradient: Grid) -> ChannelWeights:
    """Grad-CAM++: Σ_ab α_ab ReLU(g_ab) with α = g² / (2g² + S g³), 0 where g = 0 (Chattopadhay 2018 eq. 19).

    Computed as α = 1 / (2 + S g), the same number without g² and g³, which underflow for small gradients. The
    factor exp(y^c) of the paper's derivation is common to all channels of an image and left out (it
    overflows at y^c > 88 and cancels in any normalised map). α is 0 at the pole 2 + S g = 0 as well
    (signed activations only).
    """
    channel_sum = activation.sum(dim=(2, 3), keepdim=True)
    denominator = 2 + channel_sum * gradient
    defined = (gradient != 0) & (denominator != 0)
    alpha = torch.where(defined, 1 / denominator.masked_fill(~defined, 1), 0)
    return (alpha * gradient.relu()).sum(dim=(2, 3), keepdim=True)


def xgradcam_weights(activation: Grid, gradient: Grid) -> ChannelWeights:
    """XGrad-CAM: Σ_ab g_ab A_ab / S, 0 where S = 0 (Fu 2020 eq. 7)."""
    channel_sum = activation.sum(dim=(2, 3), keepdim=True)
    weighted = (gradient * activation).sum(dim=(2, 3), keepdim=True)
    defined = channel_sum != 0
    return torch.where(defined, weighted / channel_sum.masked_fill(~defined, 1), 0)


class GradientCAM(ClassActivationMap):
    """Base of the gradient methods: subclasses say how activation and gradient become one signed map."""

    @abstractmethod
    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 h w"]:
        """The method's map before the final ReLU."""

    def attribute(
        self, inputs: Float[Tensor, "n c h w"], target: Target = None, *, batch_size: int | None = None
    ) -> Float[Tensor, "n 1 h w"]:
        """Map of each image for its target, >= 0, at input size (ReLU on the layer's grid, then bilinear).

        Args:
            target: class index for all images, one per image, or None for each image's predicted class.
            batch_size: images per pass; default all at once. Halved when memory runs out.
        """
        lowres = self.attribute_lowres(inputs, target, batch_size=batch_size)
        return upsample_map(lowres, (inputs.shape[-2], inputs.shape[-1]))

    def attribute_lowres(
        self,
        inputs: Float[Tensor, "n c h w"],
        target: Target = None,
        *,
        signed: bool = False,
        batch_size: int | None = None,
    ) -> Float[Tensor, "n 1 a b"]:
        """The map on the layer's own grid, after the ReLU (`signed=False`) or before it."""
        parts: dict[int, Tensor] = {}

        def step(part: slice) -> None:
            parts[part.start] = self._signed_map(inputs[part], slice_target(target, part))

        with evaluation_mode(self.forward_func):
            run_in_shrinking_batches(step, len(inputs), batch_size or len(inputs))
        maps = torch.cat([parts[start] for start in sorted(parts)])
        return maps if signed else maps.relu()

    def _signed_map(self, inputs: Tensor, target: Target) -> Tensor:
        # The caller may be in no_grad or inference mode; what runs behind `layer` needs a graph all the same.
        with torch.inference_mode(False), torch.enable_grad():
            logits, recorded = forward_with_activation(self.forward_func, self.layer, inputs, differentiable=True)
            classes = resolve_target(target, logits.detach())
            (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), recorded)
        return self.combine(self.reshape(recorded.detach()), self.reshape(gradient))


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju 2017): Σ_k mean(g_k) A_k. Equal to `captum.attr.LayerGradCam` on grids."""

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 h w"]:
        return (gradcam_weights(gradient) * activation).sum(dim=1, keepdim=True)


class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++ (Chattopadhay 2018, eq. 19) with the masked division."""

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 h w"]:
        return (gradcam_plus_plus_weights(activation, gradient) * activation).sum(dim=1, keepdim=True)


class XGradCAM(GradientCAM):
    """XGrad-CAM (Fu 2020). Equal to Grad-CAM where each channel's gradient is constant (GAP heads)."""

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 h w"]:
        return (xgradcam_weights(activation, gradient) * activation).sum(dim=1, keepdim=True)


class LayerCAM(GradientCAM):
    """LayerCAM (Jiang 2021): Σ_k ReLU(g_k) A_k, a weight for every cell."""

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 h w"]:
        return (gradient.relu() * activation).sum(dim=1, keepdim=True)
