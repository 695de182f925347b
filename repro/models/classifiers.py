"""The classifiers whose decisions are explained, each with the layer and the normalisation that belong to it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models import VisionTransformer, get_weight

from repro.data.images import HALF, IMAGENET, Normalisation
from repro.models.weights import (
    PACKAGE_ARCHITECTURE,
    PUBLISHED,
    Weights,
    WeightsUnavailable,
    in_order_of,
    load_into,
    read_weights,
)
from repro.vocabulary import ArchitectureName

# ResNet-20 for CIFAR-10 (He 2016, §4.2), with the parameter names of the public weights that `quick` uses.


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; where the shape changes the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k a b"]:
        """The block's output after its ReLU."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + shortcut)


class ResNet20(nn.Module):
    """Three stages of three blocks with 16, 32 and 64 channels; `layer3` is a quarter of the input's resolution."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1)
        self.layer2 = _stage(16, 32, stride=2)
        self.layer3 = _stage(32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    blocks = [BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(2))]
    return nn.Sequential(*blocks)


# Small classifiers that train in seconds on a CPU: the stand-ins of the smoke preset.


class SmallCNN(nn.Module):
    """Four convolutions with batch norm and a global-average-pool head (about 62,000 parameters at 10 classes).

    The head is linear on the pooled features, so Grad-CAM, XGrad-CAM and CAM coincide up to scale, as on ResNet-18.
    The last feature map is 1/8 of the input (8×8 at 64×64) with a receptive field of 23 pixels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 16, stride=2),
            _convolution(16, 32, stride=2),
            _convolution(32, 64, stride=1),
            _convolution(64, 64, stride=2),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, inputs: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits of normalised images."""
        return self.head(self.features(inputs).mean(dim=(2, 3)))


def _convolution(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def small_vit(num_classes: int, input_size: int) -> VisionTransformer:
    """A three-block vision transformer of width 64 with a class token, in torchvision's layout.

    Patches are 8 pixels from an input size of 64 on and 4 below, which makes an 8×8 grid of tokens at 32 and 64
    and 7×7 at 28.

    Raises:
        ValueError: `input_size` is not a multiple of the patch size.
    """
    patch = 8 if input_size >= 64 else 4
    if input_size % patch:
        raise ValueError(f"input_size: {input_size} is not a multiple of the patch size {patch}; resize the images")
    network = VisionTransformer(
        image_size=input_size,
        patch_size=patch,
        num_layers=3,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=num_classes,
    )
    initialise_vit_head(network)
    return network


def initialise_vit_head(network: VisionTransformer) -> None:
    """Draw the head at random: torchvision leaves it at zero, where every gradient and every map is zero too."""
    head = network.heads.head
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features))


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode and what an explanation of it needs.

    Attributes:
        architecture: its name.
        network: maps normalised images `(n, 3, h, w)` to logits `(n, classes)`.
        target_layer: the submodule whose activation the maps are made of.
        normalisation: from pixels 0..255 to what `network` expects.
        input_size: height = width of the images, in pixels.
        classes: class names in index order.
    """

    architecture: ArchitectureName
    network: nn.Module
    target_layer: nn.Module
    normalisation: Normalisation
    input_size: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """How to build a network, and the names of its parts."""

    build: Callable[[int, int], nn.Module]
    """From the number of classes and the input size in pixels."""
    target_layer: str | None
    """Dotted name of the layer explained by default (docs/papers/scorecampp.md §1.5); None: it has to be named."""
    head: str | None
    """Dotted name of the last layer, which a fine-tuning to other classes replaces."""
    input_size: int = 224
    fixed_size: bool = False
    """True where the network takes no other input size."""
    normalisation: Normalisation = IMAGENET
    published: str | None = None
    """What `weights="torchvision"` or `"timm"` stands for: torchvision's name of its weights, or an address."""
    imagenet: bool = False
    """True where 1000 classes are ImageNet's."""


def _squeezenet1_0(num_classes: int, _input_size: int) -> nn.Module:
    return torchvision_models.squeezenet1_0(weights=None, num_classes=num_classes)


def _resnet20(num_classes: int, _input_size: int) -> nn.Module:
    return ResNet20(num_classes)


def _resnet18(num_classes: int, _input_size: int) -> nn.Module:
    return torchvision_models.resnet18(weights=None, num_classes=num_classes)


def _vgg19(num_classes: int, _input_size: int) -> nn.Module:
    return torchvision_models.vgg19(weights=None, num_classes=num_classes)


def _vit_b_16(num_classes: int, _input_size: int) -> nn.Module:
    network = torchvision_models.vit_b_16(weights=None, num_classes=num_classes)
    initialise_vit_head(network)
    return network


def _small_cnn(num_classes: int, _input_size: int) -> nn.Module:
    return SmallCNN(num_classes)


ARCHITECTURES: dict[str, Architecture] = {
    "small_cnn": Architecture(_small_cnn, "features", "head", input_size=64, normalisation=HALF),
    # Behind the last attention only the class token reaches the head, so `ln_1` is the last layer with gradients.
    "small_vit": Architecture(small_vit, "encoder.layers.encoder_layer_2.ln_1", "heads.head", 64, normalisation=HALF),
    "squeezenet1_0": Architecture(
        _squeezenet1_0, "features.12", "classifier.1", imagenet=True, published="SqueezeNet1_0_Weights.IMAGENET1K_V1"
    ),
    # Made for 32×32 images (CIFAR-10); the public weights were trained with ImageNet's normalisation.
    "resnet20": Architecture(_resnet20, "layer3", "linear", input_size=32),
    "resnet18": Architecture(_resnet18, "layer4", "fc", imagenet=True, published="ResNet18_Weights.IMAGENET1K_V1"),
    # 36 is the last max-pool (7×7, the released tables); the released figures use 35, the ReLU before it (14×14).
    "vgg19": Architecture(
        _vgg19, "features.36", "classifier.6", imagenet=True, published="VGG19_Weights.IMAGENET1K_V1"
    ),
    "vit_b_16": Architecture(
        _vit_b_16,
        "encoder.layers.encoder_layer_11.ln_1",
        "heads.head",
        fixed_size=True,
        imagenet=True,
        published="ViT_B_16_Weights.IMAGENET1K_V1",
    ),
}
"""Every architecture `load_classifier` knows."""


def load_classifier(
    architecture: ArchitectureName,
    *,
    num_classes: int,
    weights: Weights = None,
    classes: Sequence[str] | None = None,
    input_size: int | None = None,
    target_layer: str | None = None,
    replace_head: bool = False,
    seed: int = 0,
) -> Classifier:
    """Build a network, fill in its weights and put it into evaluation mode (on the CPU).

    Args:
        architecture: a key of `ARCHITECTURES`, or `torchvision:NAME`, `timm:NAME` (see `architecture_of`).
        num_classes: number of logits.
        weights: None (random, from `seed`), a state dict, a file, `"torchvision"` or `"timm"` (downloads), or
            `"package"`; see `Weights`.
        classes: class names in index order; by default ImageNet's where there are 1000, else `class 0`, `class 1`, ….
        input_size: height = width of the images in pixels; None takes the architecture's own.
        target_layer: dotted name of the layer to explain; None takes the architecture's own. For `vgg19` the
            readings are `features.36` (released tables) and `features.35` (released figures).
        replace_head: keep the last layer random, whatever `weights` holds for it: the start of a fine-tuning.
        seed: of everything that is drawn at random; the global random state is left as it was.

    Raises:
        WeightsUnavailable: the weights are missing or do not fit (a `ValueError`).
        ValueError: an unknown architecture or layer, an input size the architecture cannot take, or as many class
            names as there are not classes.
    """
    plan = architecture_of(architecture)
    size = _input_size(architecture, plan, input_size)
    names = _class_names(plan, num_classes, classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = plan.build(num_classes, size)
    if weights is not None:
        _fill(network, architecture, plan, weights, replace_head)
    layer = _submodule(architecture, network, plan.target_layer if target_layer is None else target_layer)
    return Classifier(architecture, network.eval(), layer, plan.normalisation, size, names)


def architecture_of(name: str) -> Architecture:
    """How to build a network: one of `ARCHITECTURES`, or any of a library as `torchvision:NAME` or `timm:NAME`.

    Input size, normalisation and weights of the latter are the library's own configuration.

    Raises:
        ValueError: no network of that name; the message names the nearest ones.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    library, _, model = name.partition(":")
    if library == "timm" and model:
        return _timm_architecture(model)
    if library == "torchvision" and model:
        return _torchvision_architecture(model)
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    hint = f"did you mean {near[0]!r}? Choose" if near else "choose"
    raise ValueError(
        f"architecture: {name!r} is unknown; {hint} one of {', '.join(ARCHITECTURES)}, or any network of a library: "
        "torchvision:NAME, timm:NAME"
    )


def _timm_architecture(model: str) -> Architecture:
    import timm

    if not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        raise ValueError(f"architecture: timm has no {model!r}; the nearest names are {', '.join(near) or 'none'}")
    config = timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()

    def build(classes: int, size: int) -> nn.Module:
        resizes: dict[str, Any] = {"img_size": size} if config.fixed_input_size else {}
        return timm.create_model(model, pretrained=False, num_classes=classes, **resizes)

    return Architecture(
        build,
        None,
        config.classifier if isinstance(config.classifier, str) else None,
        config.input_size[-1],
        normalisation=_normalisation(config.mean, config.std),
        published=config.url if isinstance(config.url, str) else None,
        imagenet=config.num_classes == 1000,
    )


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> Normalisation:
    (r, g, b), (s, t, u) = mean, std
    return Normalisation((r, g, b), (s, t, u))


def _torchvision_architecture(model: str) -> Architecture:
    if model not in torchvision_models.list_models():
        near = difflib.get_close_matches(model, torchvision_models.list_models(), n=3)
        raise ValueError(
            f"architecture: torchvision has no {model!r}; the nearest names are {', '.join(near) or 'none'}"
        )
    weights = torchvision_models.get_model_weights(model).DEFAULT
    preset = weights.transforms()
    if not hasattr(preset, "crop_size") or len(preset.mean) != 3:
        raise ValueError(f"architecture: torchvision's {model} is no classifier of single images")

    def build(classes: int, _size: int) -> nn.Module:
        auxiliary = {"init_weights": True} if model in ("googlenet", "inception_v3") else {}
        return torchvision_models.get_model(model, weights=None, num_classes=classes, **auxiliary)

    size, scale = preset.crop_size[0], _normalisation(preset.mean, preset.std)
    fixed = model.startswith("vit_")
    return Architecture(build, None, None, size, fixed, scale, str(weights), imagenet=True)


def _fill(network: nn.Module, architecture: str, plan: Architecture, weights: Weights, replace_head: bool) -> None:
    assert weights is not None
    if weights == "package" and architecture != PACKAGE_ARCHITECTURE:
        raise ValueError(f"weights: 'package' holds those of {PACKAGE_ARCHITECTURE}, not of {architecture}")
    if weights in PUBLISHED and weights != _library(architecture):
        raise WeightsUnavailable(f"weights: {weights} has none for this architecture ({architecture}); give a file")
    if replace_head and plan.head is None:
        raise ValueError(
            f"replace_head: the last layer of {architecture} has no known name; load the weights as they are"
        )
    state = read_weights(weights, plan.published)
    if weights == "package":
        with torch.random.fork_rng():
            state = in_order_of(plan.build(1000, plan.input_size), state)
    load_into(network, state, plan.head, replace_head)


def _library(architecture: str) -> str:
    return "timm" if architecture.startswith("timm:") else "torchvision"


def _input_size(name: str, plan: Architecture, size: int | None) -> int:
    if size is None:
        return plan.input_size
    if size < 1 or (plan.fixed_size and size != plan.input_size):
        raise ValueError(f"input_size: {name} cannot take {size} pixels; it was made for {plan.input_size}")
    return size


def _class_names(plan: Architecture, num_classes: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes}; expected at least 1")
    if classes is None and num_classes == 1000 and plan.imagenet:
        return tuple(get_weight("ResNet18_Weights.IMAGENET1K_V1").meta["categories"])
    if classes is None:
        return tuple(f"class {index}" for index in range(num_classes))
    if len(classes) != num_classes:
        raise ValueError(f"classes: {len(classes)} names for num_classes={num_classes}; give one name per class")
    return tuple(classes)


def _submodule(architecture: str, network: nn.Module, name: str | None) -> nn.Module:
    if name is None:
        raise ValueError(
            f"target_layer: which layer of {architecture} to explain has to be named; `repro.explain.layers(network)` "
            "lists those that make sense, with their grids"
        )
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"target_layer: {architecture} has no layer {name!r}; list them with `dict(network.named_modules())`"
        ) from error
