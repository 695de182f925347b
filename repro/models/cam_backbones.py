"""The CAM networks of EGA's tables and three small ones for CPUs.

`weights` is always the state dict of the whole torchvision network of the same name
(e.g. `torchvision.models.vgg16_bn(weights="DEFAULT").state_dict()`); None starts from random weights.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision import models
from torchvision.models.inception import InceptionB

from repro.models.cam_network import CAMNetwork, Head, load_backbone

# A block in which every place of a map looks at every other (Wang et al., Non-local neural networks, CVPR 2018).


class NonLocalBlock(nn.Module):
    """x + BN(W_z softmax(θ(x)ᵀ φ(x)) g(x)), the embedded Gaussian form (eq. 2-6).

    The batch norm's weight starts at zero (§4.1 of the source), so that the block starts as the identity. Queries and
    keys have an eighth of the channels, as in the code of NL-CCAM.
    """

    def __init__(self, channels: int) -> None:
        """A block for maps of `channels` channels."""
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features plus what their places take from each other."""
        query, key, value = (layer(features).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=2)
        gathered = (attention @ value.transpose(1, 2)).transpose(1, 2)
        return features + self.norm(self.output(gathered.unflatten(2, features.shape[2:])))


FeatureMap = Literal[14, 28]
"""Side of the class maps for 224×224 images: EGA §4.1 has 14; 28 is the benchmark's larger variant."""
Weights = Mapping[str, Tensor] | None


def vgg16_cam(
    classes: int,
    *,
    batch_norm: Literal["backbone", "none"] = "backbone",
    head: Head = "acol",
    feature_map: FeatureMap = 14,
    weights: Weights = None,
) -> CAMNetwork:
    """VGG-16 without pool5 and the fully connected layers (EGA §4.1), stages conv1 … conv5.

    `batch_norm="none"` is the benchmark's and the authors' released network, which has no auxiliary branch to route
    through; the paper needs batch norms, hence the default. `feature_map=28` drops pool4.

    Raises:
        ValueError: an option is unknown or `weights` do not fit.
    """
    _check("batch_norm", batch_norm, ("backbone", "none"))
    _check("feature_map", feature_map, (14, 28))
    network = (models.vgg16_bn if batch_norm == "backbone" else models.vgg16)(init_weights=weights is None)
    load_backbone(network, weights)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    layers: list[nn.Module] = []
    for layer in network.features:
        if not isinstance(layer, nn.MaxPool2d):
            layers.append(layer)
            continue
        number = len(stages) // 2 + 1
        stages[f"conv{number}"] = nn.Sequential(*layers)
        stages[f"pool{number}"] = layer
        layers = []
    del stages["pool5"]
    if feature_map == 28:
        del stages["pool4"]
    return CAMNetwork(nn.Sequential(stages), 512, classes, head, width=1024)


def googlenet_cam(
    classes: int, *, head: Head = "acol", feature_map: FeatureMap = 14, weights: Weights = None
) -> CAMNetwork:
    """GoogLeNet up to inception4e, without the last inception blocks (EGA §4.1: "the last inception block").

    `feature_map=28` drops maxpool3.

    Raises:
        ValueError: an option is unknown or `weights` do not fit.
    """
    _check("feature_map", feature_map, (14, 28))
    network = models.googlenet(aux_logits=False, init_weights=False)
    load_backbone(network, weights)
    names = ["conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"]
    names += ["inception4a", "inception4b", "inception4c", "inception4d", "inception4e"]
    if feature_map == 28:
        names.remove("maxpool3")
    stages = OrderedDict([("rescale", SymmetricRange()), *((name, getattr(network, name)) for name in names)])
    return CAMNetwork(nn.Sequential(stages), 832, classes, head, width=1024)


def inception_v3_cam(
    classes: int, *, head: Head = "acol", feature_map: FeatureMap = 14, weights: Weights = None
) -> CAMNetwork:
    """Inception-v3 up to Mixed_6e with the padding and strides of the WSOL benchmark: its "GoogLeNet".

    The first convolution and the first pools are padded, Mixed_6a keeps the resolution; for `feature_map=14` a pool
    stands before Mixed_6a. The benchmark's dropout in the head is left out.

    Raises:
        ValueError: an option is unknown or `weights` do not fit.
    """
    _check("feature_map", feature_map, (14, 28))
    network = models.inception_v3(aux_logits=False, init_weights=False)
    load_backbone(network, weights)
    network.Conv2d_1a_3x3.conv.padding = (1, 1)
    network.Mixed_6a = KeepResolution(network.Mixed_6a)
    names = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool2"]
    names += ["Mixed_5b", "Mixed_5c", "Mixed_5d", "pool3", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"]
    if feature_map == 28:
        names.remove("pool3")
    stages: OrderedDict[str, nn.Module] = OrderedDict(rescale=SymmetricRange())
    for name in names:
        stages[name] = getattr(network, name, None) or nn.MaxPool2d(3, 2, 0 if name == "pool3" else 1, ceil_mode=True)
    return CAMNetwork(nn.Sequential(stages), 768, classes, head, width=1024)


def squeezenet_cam(classes: int, *, head: Head = "acol", width: int = 256, weights: Weights = None) -> CAMNetwork:
    """SqueezeNet 1.0 as CAM backbone: 13×13 maps at 224×224; for quick runs on real birds.

    A batch norm after the last fire module is ours: SqueezeNet has none and its features are so large that a new head
    on them does not learn (it starts at ten times the loss of chance, or stays there). It is also the one place where
    adversarial images can have statistics of their own.

    Raises:
        ValueError: `weights` do not fit.
    """
    network = models.squeezenet1_0()
    load_backbone(network, weights)
    stages = OrderedDict([*network.features.named_children(), ("norm", nn.BatchNorm2d(512))])
    return CAMNetwork(nn.Sequential(stages), 512, classes, head, width)


def alexnet_gap(classes: int, *, head: Head = "cam", weights: Weights = None) -> CAMNetwork:
    """AlexNet-GAP of Zhou et al. 2016, §3: AlexNet up to conv5 without pool5, one 3×3 convolution of 1024, GAP.

    13×13 maps at 224×224 (stated there), no batch norm. torchvision's AlexNet has 64-192-384-256-256 channels where
    the 2012 network has 96-256-384-384-256, and no response normalisation.

    Raises:
        ValueError: `weights` do not fit.
    """
    network = models.alexnet()
    load_backbone(network, weights)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    layers = list(network.features)[:-1]
    pools = [index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    convolutions = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    for number, first in enumerate(convolutions, start=1):
        stages[f"conv{number}"] = nn.Sequential(layers[first], layers[first + 1])
        if first + 2 in pools:
            stages[f"pool{number}"] = layers[first + 2]
    return CAMNetwork(nn.Sequential(stages), 256, classes, head, width=1024)


def small_cam(
    classes: int,
    *,
    width: int = 32,
    head: Head = "acol",
    batch_norm: Literal["backbone", "none"] = "backbone",
    weights: Weights = None,
) -> CAMNetwork:
    """VGG-like network of seven 3×3 convolutions for small images: map side = image side / 8 (64 → 8, 112 → 14).

    `width` channels in the first stage, doubled twice. `weights` is a state dict of the backbone itself.

    Raises:
        ValueError: an option is unknown or `weights` do not fit.
    """
    _check("batch_norm", batch_norm, ("backbone", "none"))
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for number, (outputs, depth) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2), (4 * width, 2)], start=1):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=batch_norm == "none"))
            layers += [nn.BatchNorm2d(outputs)] if batch_norm == "backbone" else []
            layers.append(nn.ReLU())
            inputs = outputs
        stages[f"conv{number}"] = nn.Sequential(*layers)
        stages[f"pool{number}"] = nn.MaxPool2d(2)
    del stages["pool4"]
    return _small(stages, weights, inputs, classes, head, 4 * width)


def small_inception(classes: int, *, width: int = 16, head: Head = "acol", weights: Weights = None) -> CAMNetwork:
    """Two convolutions and four inception blocks with batch norms for small images: map side = image side / 8.

    GoogLeNet's layout at the scale of `small_cam`: `width` channels in the first stage, 2, 8 and 16 times as many
    after each pool. `weights` is a state dict of the backbone itself.

    Raises:
        ValueError: `weights` do not fit.
    """
    stages = {
        "conv1": _unit(3, width, 3),
        "pool1": nn.MaxPool2d(2),
        "conv2": _unit(width, 2 * width, 3),
        "pool2": nn.MaxPool2d(2),
        "inception3a": InceptionBlock(2 * width, 8 * width),
        "inception3b": InceptionBlock(8 * width, 8 * width),
        "pool3": nn.MaxPool2d(2),
        "inception4a": InceptionBlock(8 * width, 16 * width),
        "inception4b": InceptionBlock(16 * width, 16 * width),
    }
    return _small(stages, weights, 16 * width, classes, head, 8 * width)


def _small(
    stages: Mapping[str, nn.Module], weights: Weights, channels: int, classes: int, head: Head, width: int
) -> CAMNetwork:
    backbone = nn.Sequential(OrderedDict(stages))
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    load_backbone(backbone, weights)
    return CAMNetwork(backbone, channels, classes, head, width)


class InceptionBlock(nn.Module):
    """Four parallel branches with a quarter of the outputs each: 1×1; 1×1, 3×3; 1×1, 3×3, 3×3; pooling, 1×1.

    The shape of the blocks of Szegedy et al. 2016 (Inception-v2), with equal shares.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        share = outputs // 4
        self.branches = nn.ModuleList(
            [
                _unit(inputs, share, 1),
                nn.Sequential(_unit(inputs, share, 1), _unit(share, share, 3)),
                nn.Sequential(_unit(inputs, share, 1), _unit(share, share, 3), _unit(share, share, 3)),
                nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), _unit(inputs, share, 1)),
            ]
        )

    def forward(self, features: Float[Tensor, "n inputs h w"]) -> Float[Tensor, "n outputs h w"]:
        """The four branches, concatenated."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class SymmetricRange(nn.Module):
    """From ImageNet normalisation to [-1, 1], which the GoogLeNet and Inception-v3 checkpoints were trained on."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        self.register_buffer("scale", deviation / 0.5, persistent=False)
        self.register_buffer("shift", (mean - 0.5) / 0.5, persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Rescaled images."""
        return images * self.scale + self.shift


class KeepResolution(nn.Module):
    """Inception-v3's Mixed_6a with stride 1 and padding 1 in place of stride 2."""

    def __init__(self, block: InceptionB) -> None:
        super().__init__()
        self.branch3x3 = block.branch3x3
        self.branch3x3dbl = nn.Sequential(block.branch3x3dbl_1, block.branch3x3dbl_2, block.branch3x3dbl_3)
        for convolution in (block.branch3x3.conv, block.branch3x3dbl_3.conv):
            convolution.stride, convolution.padding = (1, 1), (1, 1)

    def forward(self, features: Float[Tensor, "n 288 h w"]) -> Float[Tensor, "n 768 h w"]:
        """The three branches at full resolution, concatenated."""
        pooled = F.max_pool2d(features, 3, stride=1, padding=1)
        return torch.cat([self.branch3x3(features), self.branch3x3dbl(features), pooled], dim=1)


def _unit(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _check(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}")
