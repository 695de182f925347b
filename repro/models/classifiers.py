"""The classifiers whose decisions are explained, each with the layer and the normalisation that belong to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import get_weight

from repro.data.normalisation import HALF, IMAGENET, Normalisation
from repro.models.resnet20 import ResNet20
from repro.models.small_networks import SmallCNN, initialise_vit_head, small_vit
from repro.models.weights import Weights, load_into, read_weights
from repro.vocabulary import ArchitectureName


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
    target_layer: str
    """Dotted name of the layer that is explained by default (digest scorecampp §1.5)."""
    head: str
    """Dotted name of the last layer, which a fine-tuning to other classes replaces."""
    input_size: int = 224
    fixed_size: bool = False
    """True where the network takes no other input size."""
    normalisation: Normalisation = IMAGENET
    torchvision: str | None = None
    """The torchvision weights that `weights="torchvision"` stands for."""


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


ARCHITECTURES: dict[ArchitectureName, Architecture] = {
    "small_cnn": Architecture(_small_cnn, "features", "head", input_size=64, normalisation=HALF),
    # Behind the last attention only the class token reaches the head, so `ln_1` is the last layer with gradients.
    "small_vit": Architecture(small_vit, "encoder.layers.encoder_layer_2.ln_1", "heads.head", 64, normalisation=HALF),
    "squeezenet1_0": Architecture(
        _squeezenet1_0, "features.12", "classifier.1", torchvision="SqueezeNet1_0_Weights.IMAGENET1K_V1"
    ),
    # Made for 32×32 images (CIFAR-10); the public weights were trained with ImageNet's normalisation.
    "resnet20": Architecture(_resnet20, "layer3", "linear", input_size=32),
    "resnet18": Architecture(_resnet18, "layer4", "fc", torchvision="ResNet18_Weights.IMAGENET1K_V1"),
    # 36 is the last max-pool (7×7, the released tables); the released figures use 35, the ReLU before it (14×14).
    "vgg19": Architecture(_vgg19, "features.36", "classifier.6", torchvision="VGG19_Weights.IMAGENET1K_V1"),
    "vit_b_16": Architecture(
        _vit_b_16,
        "encoder.layers.encoder_layer_11.ln_1",
        "heads.head",
        fixed_size=True,
        torchvision="ViT_B_16_Weights.IMAGENET1K_V1",
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
        architecture: a key of `ARCHITECTURES`.
        num_classes: number of logits.
        weights: None (random, from `seed`), a state dict, a file, or `"torchvision"` (downloads); see `Weights`.
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
    plan = _architecture(architecture)
    size = _input_size(architecture, plan, input_size)
    names = _class_names(plan, num_classes, classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = plan.build(num_classes, size)
    if weights is not None:
        load_into(network, read_weights(weights, plan.torchvision), plan.head, replace_head)
    layer = _submodule(architecture, network, target_layer or plan.target_layer)
    return Classifier(architecture, network.eval(), layer, plan.normalisation, size, names)


def _architecture(name: str) -> Architecture:
    if name not in get_args(ArchitectureName):
        raise ValueError(f"architecture: {name!r} is unknown; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]  # type: ignore[index]


def _input_size(name: str, plan: Architecture, size: int | None) -> int:
    if size is None:
        return plan.input_size
    if size < 1 or (plan.fixed_size and size != plan.input_size):
        raise ValueError(f"input_size: {name} cannot take {size} pixels; it was made for {plan.input_size}")
    return size


def _class_names(plan: Architecture, num_classes: int, classes: Sequence[str] | None) -> tuple[str, ...]:
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes}; expected at least 1")
    if classes is None and num_classes == 1000 and plan.torchvision is not None:
        return tuple(get_weight(plan.torchvision).meta["categories"])
    if classes is None:
        return tuple(f"class {index}" for index in range(num_classes))
    if len(classes) != num_classes:
        raise ValueError(f"classes: {len(classes)} names for num_classes={num_classes}; give one name per class")
    return tuple(classes)


def _submodule(architecture: str, network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"target_layer: {architecture} has no layer {name!r}; list them with `dict(network.named_modules())`"
        ) from error
