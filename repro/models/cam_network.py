"""The interface of every CAM network: class maps before pooling, logits after it (EGA §3.1, eq. 1–3)."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

Head = Literal["acol", "cam"]
"""`acol`: two 3×3 convolutions and a 1×1 to the classes, as EGA §4.1; `cam`: one 3×3 convolution and a linear
layer, as Zhou et al. 2016 and the WSOL benchmark."""


class CAMOutput(NamedTuple):
    """What `CAMNetwork.cam` returns."""

    logits: Float[Tensor, "n classes"]
    maps: Float[Tensor, "n classes h w"]
    auxiliary: Mapping[str, Tensor] = MappingProxyType({})
    """What the layers of an add-on return beside them, by name, such as the maps of a second branch."""


class CAMNetwork(nn.Module):
    """Backbone, head convolutions and a classifier whose pooled maps are the logits.

    `backbone` is an `nn.Sequential` of named stages, so that add-ons can place layers between them.
    """

    def __init__(self, backbone: nn.Sequential, channels: int, classes: int, head: Head, width: int) -> None:
        """Put a `head` of `width` channels for `classes` classes on a backbone that ends with `channels`.

        Raises:
            ValueError: `head` is unknown or `classes` is not positive.
        """
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes is {classes}; at least one is needed")
        self.backbone = backbone
        self.classes = classes
        self.branches = nn.ModuleDict()
        self._stages: dict[str, str] = {}
        self.neck: nn.Sequential
        self.classifier: nn.Conv2d | nn.Linear
        if head == "acol":
            self.neck = nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
            )
            self.classifier = nn.Conv2d(width, classes, 1)
        elif head == "cam":
            self.neck = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
            self.classifier = nn.Linear(width, classes)
        else:
            raise ValueError(f"head is {head!r}; choose 'acol' or 'cam'")
        for layer in (*self.neck, self.classifier):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n classes"]:
        """Class scores of normalised images; equal to those of `cam`, without maps where they are not needed."""
        features = self.features(images)
        if isinstance(self.classifier, nn.Linear):
            return self.classifier(features.mean((2, 3)))
        return self.classify(features).logits

    def cam(self, images: Float[Tensor, "n 3 height width"]) -> CAMOutput:
        """Class scores and the class maps they are the means of (EGA eq. 3), not rectified, not normalised.

        With `head="cam"` the bias of the linear layer belongs to the logits only; it shifts a whole map. What the
        branches of add-ons return stands in `auxiliary`.
        """
        if not self._stages:
            return self.classify(self.features(images))
        seen: dict[str, Tensor] = {}
        features = images
        for name, stage in self.backbone.named_children():
            features = seen[name] = stage(features)
        seen["neck"] = self.neck(features)
        logits, maps, _ = self.classify(seen["neck"])
        return CAMOutput(logits, maps, {name: self.branches[name](seen[at]) for name, at in self._stages.items()})

    def add_branch(self, name: str, branch: nn.Module, stage: str | None = None) -> None:
        """Give the network layers of an add-on, which learn at the head's rate.

        Args:
            name: key of its output in `CAMOutput.auxiliary`.
            branch: layers.
            stage: stage of the backbone, or `neck`, on whose output `cam` runs the branch; None for layers that an
                ingredient runs itself.

        Raises:
            ValueError: the name is taken or there is no such stage.
        """
        stages = [*(found for found, _ in self.backbone.named_children()), "neck"]
        if name in self.branches:
            raise ValueError(f"there is a branch '{name}' already; give each add-on names of its own")
        if stage is not None and stage not in stages:
            raise ValueError(f"there is no stage '{stage}'; expected one of {', '.join(stages)}")
        self.branches[name] = branch
        if stage is not None:
            self._stages[name] = stage

    def features(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n channels h w"]:
        """The last convolutional features f_k of eq. 1."""
        return self.neck(self.backbone(images))

    def classify(self, features: Float[Tensor, "n channels h w"]) -> CAMOutput:
        """Maps and logits of last convolutional features."""
        return pooled_maps(features, self.classifier)

    def head_modules(self) -> list[nn.Module]:
        """The modules that are new, not pretrained; they learn faster (`OptimiserSettings.head_multiplier`)."""
        return [self.neck, self.classifier, self.branches]


_PROBE = 64


@torch.no_grad()
def stage_channels(network: CAMNetwork) -> dict[str, int]:
    """Channels after each stage of the backbone, seen by sending a black image through; nothing changes."""
    features = next(network.parameters()).new_zeros(1, 3, _PROBE, _PROBE)
    training = network.training
    network.eval()
    found = {}
    for name, stage in network.backbone.named_children():
        features = stage(features)
        found[name] = features.shape[1]
    network.train(training)
    return found


def pools_and_end(network: CAMNetwork) -> list[str]:
    """Names of the stages that are pools, and of the last stage: pool1 … pool4 and conv5 of VGG-16."""
    stages = dict(network.backbone.named_children())
    return [*(name for name, stage in stages.items() if isinstance(stage, nn.MaxPool2d)), list(stages)[-1]]


def add_after(network: CAMNetwork, stages: Sequence[str], build: Callable[[int], nn.Module]) -> None:
    """Place a layer behind each of some stages, in place; the stages keep their names.

    Args:
        network: changed in place.
        stages: names in the backbone; one named twice gets one layer.
        build: from the number of channels to the layer.
    """
    channels = stage_channels(network)
    for name in dict.fromkeys(stages):
        setattr(network.backbone, name, nn.Sequential(network.backbone.get_submodule(name), build(channels[name])))


def maps_of(maps: Shaped[Tensor, "n classes *rest"], classes: Int[Tensor, " n"]) -> Shaped[Tensor, "n *rest"]:
    """The map or maps of one class per image."""
    return maps[torch.arange(len(classes), device=classes.device), classes]


def pooled_maps(features: Float[Tensor, "n channels h w"], classifier: nn.Conv2d | nn.Linear) -> CAMOutput:
    """Class maps of `features` and the logits they are the means of (EGA eq. 3); see `CAMNetwork.cam` for the bias."""
    if isinstance(classifier, nn.Linear):
        maps = F.conv2d(features, classifier.weight[:, :, None, None])
        return CAMOutput(classifier(features.mean((2, 3))), maps)
    maps = classifier(features)
    return CAMOutput(maps.mean((2, 3)), maps)


def load_backbone(network: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Fill a torchvision network with the ImageNet state dict `weights`; None keeps the random initialisation.

    Entries of auxiliary classifiers, which CAM networks do not have, are left out.

    Raises:
        ValueError: names or shapes do not fit.
    """
    if weights is None:
        return
    needed = network.state_dict()
    auxiliary = ("aux1.", "aux2.", "AuxLogits.")
    extra = [name for name in weights if name not in needed and not name.startswith(auxiliary)]
    missing = [name for name in needed if name not in weights]
    if extra or missing:
        raise ValueError(
            f"weights do not fit {type(network).__name__}: missing {missing[:3]}, unexpected {extra[:3]}; "
            "give the state dict of the torchvision network of the same name"
        )
    wrong = [name for name in needed if needed[name].shape != weights[name].shape]
    if wrong:
        raise ValueError(f"weights have other shapes than {type(network).__name__} at {wrong[:3]}")
    network.load_state_dict({name: weights[name] for name in needed})
