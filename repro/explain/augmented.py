"""Augmented Grad-CAM++: Grad-CAM++ of many warped copies of an image, put together to one map.

The paper (Gao 2023, Electronics 12(23) 4846) released no code and its text gives no constants. This is a
*reconstruction*: Grad-CAM++ in the place of Grad-CAM in Augmented Grad-CAM (Morbidelli, ICASSP 2020), whose
released code states every constant used here (docs/papers/scorecampp.md §2).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.base import LayerChoice, check_words, upsample_map
from repro.explain.gradient import GradCAMPlusPlus
from repro.explain.layer import Call, LayerReader, Layout, ModelInputs, Reshape
from repro.models.class_scores import Target, resolve_target

Affine = Float[Tensor, "r 2 3"]


@dataclass(frozen=True)
class SuperResolutionSettings:
    """min_v Σ_i ‖D T_i v − g_i‖² + λ_tv Σ|∇v|₁ + λ_energy ‖v‖², v₀ = 0 (ICASSP 2020 code).

    D samples at the cell centres; the released D (TensorFlow 1's resize) samples at the cells' corners, which
    shifts the map by half a cell. With the published step and iterations v is far from converged (Adam moves
    at most `learning_rate` per step): raise `learning_rate` to 1e-2 for a sharp map (docs/papers/scorecampp.md §2).
    """

    total_variation: float = 0.002
    """λ_tv per copy: 0.2 for the published 100 copies."""
    energy: float = 0.0001
    """λ_energy per copy: 0.01 for the published 100 copies."""
    learning_rate: float = 1e-3
    """Adam's step."""
    iterations: int = 200
    """Adam's steps."""


@dataclass(frozen=True)
class AugmentationSettings:
    """How copies are drawn and put together. The default is the reconstruction with the ICASSP constants."""

    copies: int = 100
    """Warped copies per image; in the reconstruction copy 0 is the image itself."""
    max_angle: float = math.degrees(0.5)
    """Rotation, uniform in ± this many degrees; ICASSP: 0.5 rad."""
    max_shift: float = 30 / 224
    """Translation after the rotation, uniform in ± this fraction of each side; ICASSP: 30 of 224 pixels."""
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    """Interpolation of the warped images; what lies outside is 0."""
    combine: Literal["mean", "max", "super_resolution"] = "mean"
    """How the copies' maps become one."""
    explained: Literal["target", "copy_number"] = "target"
    """Class explained on each copy; `copy_number`: class j on copy j, a slip of the released code."""
    inverse_warp: bool = True
    """Bring each copy's map back to the image's frame; the released ScoreCAM++ code does not."""
    normalise: Literal["maximum", "minmax"] = "maximum"
    """Scale of each copy's map: by its maximum (ICASSP) or to 0…1 (released code; constant → 0)."""
    super_resolution: SuperResolutionSettings = SuperResolutionSettings()
    """Used with `combine="super_resolution"` only."""
    seed: int = 0
    """Seed of the warps. All images get the same ones: a map does not depend on its place in the batch."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}; expected at least 1")
        if self.combine == "super_resolution" and not self.inverse_warp:
            raise ValueError("combine='super_resolution' inverts the warps itself; it needs inverse_warp=True")


RELEASED_AUGMENTATION = AugmentationSettings(
    copies=100,
    max_angle=45.0,
    max_shift=0.2,
    interpolation="nearest",
    explained="copy_number",
    inverse_warp=False,
    normalise="minmax",
)
"""AquillaNatus/ScoreCAMpp 22c2d3a, behind Tables 1-4 (r = 100). No baseline: docs/papers/scorecampp.md §0 (4)."""


def draw_warps(settings: AugmentationSettings, size: tuple[int, int], *, identity_first: bool) -> Affine:
    """Random rotations, then translations: maps from original to warped pixel offsets from the centre."""
    generator = torch.Generator().manual_seed(settings.seed)
    draws = 2 * torch.rand(settings.copies, 3, generator=generator) - 1
    if identity_first:
        draws[0] = 0
    angle = torch.deg2rad(settings.max_angle * draws[:, 0])
    shift = settings.max_shift * draws[:, 1:] * torch.tensor([size[1], size[0]])
    cosine, sine = angle.cos(), angle.sin()
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
    return torch.cat([rotation, shift[:, :, None]], dim=2)


def invert(warps: Affine) -> Affine:
    """Inverse of rotations followed by translations."""
    rotation = warps[:, :, :2].transpose(1, 2)
    return torch.cat([rotation, -rotation @ warps[:, :, 2:]], dim=2)


def sampling_grid(
    warps: Affine, size: tuple[int, int], cells: tuple[int, int] | None = None
) -> Float[Tensor, "r a b 2"]:
    """Where, in an image of `size`, the centres of `cells` (default: the pixels) lie after `warps`.

    In `grid_sample`'s coordinates: -1 and 1 are the outer edges (align_corners=False).
    """
    half = torch.tensor([size[1], size[0]], device=warps.device, dtype=warps.dtype) / 2
    scaled = warps * torch.cat([half, half.new_ones(1)]) / half[:, None]
    rows, columns = cells or size
    return F.affine_grid(scaled, [len(warps), 1, rows, columns], align_corners=False)


class AugmentedGradCAMPlusPlus(GradCAMPlusPlus):
    """Augmented Grad-CAM++ (reconstruction), or with `RELEASED_AUGMENTATION` what the ScoreCAM++ authors ran.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> explainer = AugmentedGradCAMPlusPlus(resnet18(), "layer4", AugmentationSettings(copies=2))
    >>> explainer.attribute(torch.randn(1, 3, 64, 64), target=3).shape
    torch.Size([1, 1, 64, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: LayerChoice,
        settings: AugmentationSettings | None = None,
        *,
        batch_size: int = 50,
        layout: Layout | None = None,
        grid: tuple[int, ...] | None = None,
        reshape: Reshape | None = None,
        call: Call | None = None,
    ) -> None:
        """Choose layer and augmentation; nothing is computed yet.

        Args:
            model, layer, layout, grid, reshape, call: as for every `ClassActivationMap`.
            settings: how copies are drawn and put together.
            batch_size: copies per pass; halved when memory runs out.

        Raises:
            ValueError: an unknown layer or word, a batch size below 1.
        """
        super().__init__(model, layer, layout=layout, grid=grid, reshape=reshape, call=call)
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size}; expected at least 1")
        self.settings = settings or AugmentationSettings()
        self.batch_size = batch_size

    def attribute(  # type: ignore[override]
        self,
        inputs: Tensor,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """Map of each image for its target (None: the class predicted on the unwarped image), shape (n, 1, h, w).

        Args:
            inputs: normalised images (n, c, h, w).
            target: class index for all images, one per image (list, array, tensor), or None for the predicted class.
            additional_forward_args: further arguments of the model's forward, the same for all copies of an image.
            attribute_to_layer_input: read what the layer gets in place of what it returns.

        Raises:
            ValueError: inputs, targets, layer or network that cannot be explained, with what to do.
        """

        def explain(reader: LayerReader, given: ModelInputs, classes: Tensor | None) -> Tensor:
            if len(given.tensors) != 1 or given.tensors[0].ndim != 4:
                raise ValueError("inputs: Augmented Grad-CAM++ warps one tensor of images (n, c, height, width)")
            logits = reader.read(given, differentiable=False).logits
            targets = resolve_target(classes, logits)
            numbers = torch.arange(len(given)).split(1)
            maps = [self._one_map(reader, given.part(i), targets[i], classes=logits.shape[1]) for i in numbers]
            return torch.cat(maps)

        return self._each_layer(inputs, target, additional_forward_args, attribute_to_layer_input, explain)

    def _one_map(self, reader: LayerReader, given: ModelInputs, label: Tensor, classes: int) -> Tensor:
        settings = self.settings
        (image,) = given.tensors
        size = (image.shape[-2], image.shape[-1])
        released = settings.explained == "copy_number"
        warps = draw_warps(settings, size, identity_first=not released).to(image)
        grids = sampling_grid(invert(warps), size)
        copies = F.grid_sample(image.expand(len(warps), -1, -1, -1), grids, settings.interpolation, align_corners=False)
        labels = label.expand(len(copies))
        if released:
            # The released loop explains the image for its own class as well, before the copies.
            copies = torch.cat([image, copies])
            labels = torch.cat([label, torch.arange(len(warps), device=label.device) % classes])
        repeated = given.part(torch.zeros(len(copies), dtype=torch.long))
        cams = self._lowres(reader, ModelInputs((copies,), repeated.extra), labels, True, self.batch_size)
        cams = _scaled(cams, from_minimum=settings.normalise == "minmax")
        if settings.combine == "super_resolution":
            return super_resolve(cams, warps, size, settings.super_resolution)
        maps = upsample_map(cams, size)
        if settings.inverse_warp:
            maps = F.grid_sample(maps, sampling_grid(warps, size), "bilinear", align_corners=False)
        return maps.mean(0, keepdim=True) if settings.combine == "mean" else maps.amax(0, keepdim=True)


def _scaled(cams: Float[Tensor, "r 1 a b"], *, from_minimum: bool) -> Float[Tensor, "r 1 a b"]:
    """Each map divided by its own maximum, its minimum subtracted before if asked; zero maps stay zero."""
    if from_minimum:
        cams = cams - cams.amin(dim=(2, 3), keepdim=True)
    peak = cams.amax(dim=(2, 3), keepdim=True)
    return cams / peak.masked_fill(peak == 0, 1)


def super_resolve(
    cams: Float[Tensor, "r 1 a b"], warps: Affine, size: tuple[int, int], settings: SuperResolutionSettings
) -> Float[Tensor, "1 1 h w"]:
    """The map of `size` whose warped, downsampled copies fit `cams` best (ICASSP 2020), cut off at 0."""
    copies = len(cams)
    # Only the cell centres of the warped map are needed: r·a·b samples instead of r full warps.
    grids = sampling_grid(invert(warps), size, cells=(cams.shape[-2], cams.shape[-1]))
    with torch.inference_mode(False), torch.enable_grad():
        observed, grids = cams.clone(), grids.clone()
        image = torch.zeros((1, 1, *size), dtype=cams.dtype, device=cams.device, requires_grad=True)
        optimizer = torch.optim.Adam([image], lr=settings.learning_rate)
        for _ in range(settings.iterations):
            optimizer.zero_grad()
            seen = F.grid_sample(image.expand(copies, -1, -1, -1), grids, "bilinear", align_corners=False)
            variation = image.diff(dim=2).abs().sum() + image.diff(dim=3).abs().sum()
            penalty = settings.total_variation * variation + settings.energy * image.square().sum()
            ((seen - observed).square().sum() + copies * penalty).backward(inputs=[image])
            optimizer.step()
    return image.detach().relu()
