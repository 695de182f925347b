"""Grad-CAM and its relatives: maps weighted by the gradient of the class logit at one layer.

Notation: activation A (n, k, h, w), gradient g = ∂y^c/∂A, S_k = Σ_ab A_ab. Gradients are taken to the
activation only: none is computed for a parameter, and nothing before the layer is differentiated. All
divisions are masked where their denominator is zero; no epsilon is added anywhere (an epsilon of 1e-6 is as
large as 2g² on ResNet-18's last stage and turns Grad-CAM++ into another method: docs/papers/scorecampp.md §1.3).
"""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from repro.explain.base import ClassActivationMap, better_layer, run_in_shrinking_batches, upsample_map, warn
from repro.explain.layer import LayerReader, ModelInputs
from repro.models.class_scores import Target, resolve_target

Grid = Float[Tensor, "n k *grid"]
Weights = Float[Tensor, "n k *ones"]


def _over_cells(values: Grid) -> Weights:
    """Sum over the grid, its axes kept."""
    return values.sum(dim=tuple(range(2, values.ndim)), keepdim=True)


def gradcam_weights(gradient: Grid) -> Weights:
    """Grad-CAM: the mean gradient of each channel (ScoreCAM++ paper eq. 2; Selvaraju 2017 eq. 1)."""
    return gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)


def gradcam_plus_plus_weights(activation: Grid, gradient: Grid) -> Weights:
    """Grad-CAM++: Σ_ab α_ab ReLU(g_ab) with α = g² / (2g² + S g³), 0 where g = 0 (Chattopadhay 2018 eq. 19).

    Computed as α = 1 / (2 + S g), the same number without g² and g³, which underflow for small gradients. The
    factor exp(y^c) of the paper's derivation is common to all channels of an image and left out (it
    overflows at y^c > 88 and cancels in any normalised map). α is 0 at the pole 2 + S g = 0 as well
    (signed activations only).
    """
    denominator = 2 + _over_cells(activation) * gradient
    defined = (gradient != 0) & (denominator != 0)
    alpha = torch.where(defined, 1 / denominator.masked_fill(~defined, 1), 0)
    return _over_cells(alpha * gradient.relu())


def xgradcam_weights(activation: Grid, gradient: Grid) -> Weights:
    """XGrad-CAM: Σ_ab g_ab A_ab / S, 0 where S = 0 (Fu 2020 eq. 7)."""
    channel_sum = _over_cells(activation)
    defined = channel_sum != 0
    return torch.where(defined, _over_cells(gradient * activation) / channel_sum.masked_fill(~defined, 1), 0)


class GradientCAM(ClassActivationMap):
    """Base of the gradient methods: subclasses say how activation and gradient become one signed map."""

    @abstractmethod
    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 *grid"]:
        """The method's map before the final ReLU."""

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        *,
        batch_size: int | None = None,
    ) -> Any:
        """Map of each image for its target, shape (n, 1, h, w) at input size, not normalised.

        Args:
            inputs: normalised images (n, c, h, w), signals (n, c, length) or volumes; a tuple of tensors where the
                model takes several, the first of which gives the maps their size.
            target: class index for all images, one per image (list, array, tensor), or None for the predicted class.
            additional_forward_args: further arguments of the model's forward; tensors of n entries are split with
                the images.
            attribute_to_layer_input: read what the layer gets in place of what it returns.
            relu_attributions: cut the map off at 0 (on the layer's grid, before upsampling), as every paper does.
            batch_size: images per pass; default all at once. Halved when memory runs out.

        Returns:
            The maps, at least in float32; a list of them where several layers were chosen.

        Raises:
            ValueError: inputs, targets, layer or network that cannot be explained, with what to do.
        """
        size = ModelInputs.of(inputs).size

        def explain(reader: LayerReader, given: ModelInputs, classes: Tensor | None) -> Tensor:
            lowres = self._lowres(reader, given, classes, relu_attributions, batch_size)
            return upsample_map(lowres, size)

        return self._each_layer(inputs, target, additional_forward_args, attribute_to_layer_input, explain)

    def attribute_lowres(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        *,
        batch_size: int | None = None,
    ) -> Any:
        """The map on the layer's own grid, shape (n, 1, rows, columns); arguments as for `attribute`."""

        def explain(reader: LayerReader, given: ModelInputs, classes: Tensor | None) -> Tensor:
            return self._lowres(reader, given, classes, relu_attributions, batch_size)

        return self._each_layer(inputs, target, additional_forward_args, attribute_to_layer_input, explain)

    def _lowres(
        self,
        reader: LayerReader,
        given: ModelInputs,
        classes: Tensor | None,
        relu_attributions: bool,
        batch_size: int | None,
    ) -> Float[Tensor, "n 1 *grid"]:
        parts: dict[int, tuple[Tensor, bool]] = {}

        def step(part: slice) -> None:
            parts[part.start] = self._signed_map(reader, given.part(part), None if classes is None else classes[part])

        run_in_shrinking_batches(step, len(given), len(given) if batch_size is None else batch_size)
        if any(blind for _, blind in parts.values()):
            other = better_layer(reader, given, rectified=False)
            warn(
                f"the logits do not depend on the grid of {reader.name}: the map of some image is zero everywhere. "
                + (f"Take an earlier layer, e.g. {other!r}" if other else "Take an earlier layer")
            )
        maps = torch.cat([parts[start][0] for start in sorted(parts)])
        return maps.relu() if relu_attributions else maps

    def _signed_map(self, reader: LayerReader, given: ModelInputs, classes: Tensor | None) -> tuple[Tensor, bool]:
        """The map before the ReLU, and whether some image's gradient is zero on the whole grid."""
        # The caller may be in no_grad or inference mode; what runs behind the layer needs a graph all the same.
        with torch.inference_mode(False), torch.enable_grad():
            reading = reader.read(given, differentiable=True)
            gradient = reading.gradient(resolve_target(classes, reading.logits.detach()))
        blind = not bool(gradient.flatten(1).any(dim=1).all())
        return self.combine(reading.activation, gradient), blind


class GradCAM(GradientCAM):
    """Grad-CAM (Selvaraju 2017): Σ_k mean(g_k) A_k. Equal to `captum.attr.LayerGradCam` on grids.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> GradCAM(resnet18(), "layer4").attribute(torch.randn(2, 3, 64, 64), target=[3, 5]).shape
    torch.Size([2, 1, 64, 64])
    """

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 *grid"]:
        """Σ_k mean(g_k) A_k."""
        return (gradcam_weights(gradient) * activation).sum(dim=1, keepdim=True)


class GradCAMPlusPlus(GradientCAM):
    """Grad-CAM++ (Chattopadhay 2018, eq. 19) with the masked division: Σ_k (Σ_ab α_ab ReLU(g_ab)) A_k.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> GradCAMPlusPlus(resnet18(), "layer4").attribute(torch.randn(1, 3, 64, 64)).shape
    torch.Size([1, 1, 64, 64])
    """

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 *grid"]:
        """Σ_k w_k A_k with `gradcam_plus_plus_weights`."""
        return (gradcam_plus_plus_weights(activation, gradient) * activation).sum(dim=1, keepdim=True)


class XGradCAM(GradientCAM):
    """XGrad-CAM (Fu 2020, eq. 7). Equal to Grad-CAM where each channel's gradient is constant (GAP heads).

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> XGradCAM(resnet18(), "layer4").attribute(torch.randn(1, 3, 64, 64)).shape
    torch.Size([1, 1, 64, 64])
    """

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 *grid"]:
        """Σ_k w_k A_k with `xgradcam_weights`."""
        return (xgradcam_weights(activation, gradient) * activation).sum(dim=1, keepdim=True)


class LayerCAM(GradientCAM):
    """LayerCAM (Jiang 2021): Σ_k ReLU(g_k) A_k, a weight for every cell.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> LayerCAM(resnet18(), "layer3").attribute(torch.randn(1, 3, 64, 64)).shape
    torch.Size([1, 1, 64, 64])
    """

    def combine(self, activation: Grid, gradient: Grid) -> Float[Tensor, "n 1 *grid"]:
        """Σ_k ReLU(g_k) A_k."""
        return (gradient.relu() * activation).sum(dim=1, keepdim=True)
