"""Classifiers cut into a feature extractor E and a feature classifier C (DFG, Tables A.3, A.5 and A.7).

Impossible or surprising entries of the printed tables, and what is built instead:

* Table A.7 prints 55 × 55 after the max pooling (padding 0); Table A.8's generator and critic work on 56 × 56,
  which is what padding 1 (torchvision, whose weights the paper loads) gives. 56 × 56 is built. Both give the
  28 × 28 printed for block 2.
* Table A.7 lists the stem as convolution, ReLU, batch norm; the torchvision weights need convolution, batch norm,
  ReLU.
* Table A.5's adaptive pooling *enlarges* a 1 × 1 map to 7 × 7 (49 copies of one value). It is built as printed:
  the first fully connected layer then has 25,088 inputs.
* Table A.5 lists no dropout; the released code has 0.5 (`dropout`). Table A.3 lists 120–84 hidden units; the released
  code has 1024–128 (`hidden`).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Architecture = Literal["lenet5", "vgg16_32", "resnet50"]


class HalvingMaxPool(nn.MaxPool2d):
    """2 × 2 max pooling; without gradient by three `maximum`s, which are bit-equal and a third of the time on a CPU."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c p q"]:
        """The largest of every 2 × 2 pixels; a last odd row or column is dropped."""
        if torch.is_grad_enabled():
            return super().forward(input)
        height, width = (side // 2 * 2 for side in input.shape[-2:])
        rows = torch.maximum(input[..., 0:height:2, :], input[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


class FeatureExtractor(nn.Module):
    """E: the first convolution block of a classifier, ending in per-channel operations after `last_conv`."""

    def __init__(self, layers: nn.Sequential, last_conv: str) -> None:
        super().__init__()
        self.layers = layers
        self.last_conv = last_conv

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f p q"]:
        """E(x)."""
        return self.layers(images)

    def without_filters(self, images: Float[Tensor, "n c h w"], keep_bias: bool = False) -> Float[Tensor, "n f p q"]:
        """Features with *every* filter of the last convolution set to zero.

        What follows that convolution (ReLU, pooling, batch norm in evaluation mode, shortcut) works on each channel
        alone, so channel j of the result is what channel j becomes when filter j alone is zeroed: θ^{\\j} of DFG,
        eq. 5. `keep_bias` zeroes the weights only, as the released code does.
        """

        def silence(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            bias = conv.bias if keep_bias else None
            silent = torch.zeros_like(output)
            return silent if not isinstance(bias, Tensor) else silent + bias[:, None, None]

        handle = self.layers.get_submodule(self.last_conv).register_forward_hook(silence)
        try:
            return self.layers(images)
        finally:
            handle.remove()


class FeatureClassifier(nn.Module):
    """C: the rest of the classifier; `body` gives the penultimate features, `head` is the last linear layer."""

    def __init__(self, body: nn.Sequential, head: nn.Linear, taps: Sequence[str]) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.taps = tuple(taps)

    def forward(self, features: Float[Tensor, "n f p q"]) -> Float[Tensor, "n k"]:
        """Logits (the SoftMax row of the tables is part of the loss)."""
        return self.head(self.body(features))

    def embed(self, features: Float[Tensor, "n f p q"]) -> Float[Tensor, "n d"]:
        """Penultimate features: the input of the last linear layer."""
        return self.body(features)

    def with_maps(self, features: Float[Tensor, "n f p q"]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and the output of each tapped convolution, before batch norm and ReLU (what DELTA regularises)."""
        with tap_outputs(self.body, self.taps) as maps:
            logits = self(features)
        return logits, tuple(maps[name] for name in self.taps)


@contextmanager
def tap_outputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules during the `with` block; hooks are gone afterwards."""
    maps: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []
    for name in names:

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            maps[name] = output

        handles.append(module.get_submodule(name).register_forward_hook(keep))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


class SplitClassifier(nn.Module):
    """C(E(x)). `frozen` names the parameters (by prefix) that the paper's fine-tuning baseline keeps fixed:
    everything before the last convolution block."""

    def __init__(self, extractor: FeatureExtractor, classifier: FeatureClassifier, frozen: Sequence[str]) -> None:
        super().__init__()
        self.extractor = extractor
        self.classifier = classifier
        self.frozen = tuple(frozen)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of whole images."""
        return self.classifier(self.extractor(images))

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return self.classifier.head.out_features

    def regularised_convolutions(self) -> list[nn.Module]:
        """The convolutions whose channels DELTA weighs: E's last, then C's tapped ones."""
        last = self.extractor.layers.get_submodule(self.extractor.last_conv)
        return [last, *(self.classifier.body.get_submodule(tap) for tap in self.classifier.taps)]

    def stages(self) -> list[nn.Module]:
        """The network as a chain of modules, each applied to the output of the one before."""
        return [*_unpacked(self.extractor.layers), *_unpacked(self.classifier.body), self.classifier.head]


def _unpacked(module: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for child in module:
        yield from _unpacked(child)


def lenet5(classes: int = 10, hidden: tuple[int, int] = (120, 84), channels: int = 1) -> SplitClassifier:
    """LeNet-5 for 32 × 32 images, Table A.3: E = conv1 + ReLU + pool (6 × 14 × 14), C = the rest.

    `hidden=(1024, 128)` is the released code's head. Fine-tuning keeps conv1 fixed.
    """
    extractor = nn.Sequential(OrderedDict(conv1=nn.Conv2d(channels, 6, 5), relu1=nn.ReLU(), pool1=HalvingMaxPool()))
    body = nn.Sequential(
        OrderedDict(
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=HalvingMaxPool(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(400, hidden[0]),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden[0], hidden[1]),
            relu4=nn.ReLU(),
        )
    )
    return SplitClassifier(
        FeatureExtractor(extractor, "conv1"),
        FeatureClassifier(body, nn.Linear(hidden[1], classes), ["conv2"]),
        frozen=["extractor."],
    )


def _vgg_block(block: int, inputs: int, outputs: int, convolutions: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, convolutions + 1):
        layers[f"conv{block}_{i}"] = nn.Conv2d(inputs if i == 1 else outputs, outputs, 3, padding=1)
        layers[f"relu{block}_{i}"] = nn.ReLU()
    layers[f"pool{block}"] = HalvingMaxPool()
    return layers


def vgg16_32(classes: int = 10, dropout: float = 0.0) -> SplitClassifier:
    """VGG-16 for 32 × 32 images, Table A.5: E = block 1 (64 × 16 × 16), C = blocks 2–5 and three linear layers.

    `dropout=0.5` is the released code's. Fine-tuning keeps blocks 1–4 fixed.
    """
    body: OrderedDict[str, nn.Module] = OrderedDict()
    for block, (inputs, outputs, convolutions) in enumerate(
        [(64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3)], start=2
    ):
        body |= _vgg_block(block, inputs, outputs, convolutions)
    body |= OrderedDict(
        enlarge=nn.AdaptiveAvgPool2d(7),
        flatten=nn.Flatten(),
        fc1=nn.Linear(512 * 49, 4096),
        relu_fc1=nn.ReLU(),
        dropout1=nn.Dropout(dropout),
        fc2=nn.Linear(4096, 512),
        relu_fc2=nn.ReLU(),
        dropout2=nn.Dropout(dropout),
    )
    fixed = [f"classifier.body.conv{block}_" for block in (2, 3, 4)]
    return SplitClassifier(
        FeatureExtractor(nn.Sequential(_vgg_block(1, 3, 64, 2)), "conv1_2"),
        FeatureClassifier(nn.Sequential(body), nn.Linear(512, classes), ["conv5_3"]),
        frozen=["extractor.", *fixed],
    )


def resnet50_split(classes: int, weights: str | None = None) -> SplitClassifier:
    """ResNet-50 for 224 × 224 images, Table A.7: E = stem and block 1 (256 × 56 × 56), C = blocks 2–4 and the head.

    `weights` is a torchvision weight name (`"IMAGENET1K_V1"`, the set the paper used); the last layer is always new.
    Fine-tuning keeps the stem and blocks 1–3 fixed.
    """
    from torchvision.models import resnet50  # torchvision is slow to import and LeNet/VGG runs need none of it

    whole = resnet50(weights=weights)
    extractor = nn.Sequential(
        OrderedDict((name, getattr(whole, name)) for name in ("conv1", "bn1", "relu", "maxpool", "layer1"))
    )
    body = nn.Sequential(
        OrderedDict((name, getattr(whole, name)) for name in ("layer2", "layer3", "layer4", "avgpool"))
        | OrderedDict(flatten=nn.Flatten())
    )
    return SplitClassifier(
        FeatureExtractor(extractor, "layer1.2.conv3"),
        FeatureClassifier(body, nn.Linear(2048, classes), ["layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"]),
        frozen=["extractor.", "classifier.body.layer2.", "classifier.body.layer3."],
    )


def split_classifier(
    architecture: Architecture, classes: int, hidden: tuple[int, int] = (120, 84), dropout: float = 0.0
) -> SplitClassifier:
    """A fresh, randomly initialised split classifier with the layer sizes of the paper's tables.

    `hidden` is LeNet-5's and `dropout` VGG-16's alone.

    Raises:
        ValueError: for an unknown architecture.
    """
    if architecture == "lenet5":
        return lenet5(classes, hidden)
    if architecture == "vgg16_32":
        return vgg16_32(classes, dropout)
    if architecture == "resnet50":
        return resnet50_split(classes)
    raise ValueError(
        f"architecture={architecture!r} is unknown; choose 'lenet5', 'vgg16_32' or 'resnet50' (Tables A.3, A.5, A.7)"
    )
