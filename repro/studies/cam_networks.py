"""CAM networks by name, with the weights they start from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from repro.files import content_hash, file_hash
from repro.models import (
    CAMNetwork,
    alexnet_gap,
    googlenet_cam,
    inception_v3_cam,
    small_cam,
    small_inception,
    squeezenet_cam,
    vgg16_cam,
)
from repro.models.weights import find_weights, read_weights
from repro.vocabulary import CAMNetworkName

Weights = dict[str, Tensor] | None
_BUILDERS: dict[CAMNetworkName, Callable[[int, Weights, int | None], CAMNetwork]] = {
    "small_cam": lambda classes, weights, width: small_cam(classes, width=width or 32, weights=weights),
    "small_inception": lambda classes, weights, width: small_inception(classes, width=width or 16, weights=weights),
    "squeezenet": lambda classes, weights, width: squeezenet_cam(classes, width=width or 256, weights=weights),
    "alexnet_gap": lambda classes, weights, width: alexnet_gap(classes, weights=weights),
    "vgg16": lambda classes, weights, width: vgg16_cam(classes, weights=weights),
    "vgg16_benchmark": lambda classes, weights, width: vgg16_cam(
        classes, batch_norm="none", head="cam", weights=weights
    ),
    "googlenet": lambda classes, weights, width: googlenet_cam(classes, weights=weights),
    "inception_v3": lambda classes, weights, width: inception_v3_cam(classes, weights=weights),
}
_TORCHVISION: dict[CAMNetworkName, str] = {
    "squeezenet": "SqueezeNet1_0_Weights.IMAGENET1K_V1",
    "alexnet_gap": "AlexNet_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_BN_Weights.IMAGENET1K_V1",
    "vgg16_benchmark": "VGG16_Weights.IMAGENET1K_V1",
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
    "inception_v3": "Inception_V3_Weights.IMAGENET1K_V1",
}


def build_network(
    name: CAMNetworkName, classes: int, *, width: int | None, weights: str | None, seed: int
) -> CAMNetwork:
    """A CAM network whose new layers are drawn with `seed`.

    Args:
        name: `vgg16` and `googlenet` are those of EGA §4.1, `vgg16_benchmark` and `inception_v3` those of the WSOL
            benchmark and of the authors' released code.
        classes: number of classes.
        width: channels of the first stage (`small_cam`, `small_inception`) or of the head (`squeezenet`); the others
            have the paper's.
        weights: `torchvision`, a file under `<REPRO_DATA>/weights`, or None for random ones.
        seed: of everything random in it.

    Raises:
        WeightsUnavailable: the weights are not here or do not fit.
    """
    state = None if weights is None else read_weights(weights, _TORCHVISION.get(name))
    torch.manual_seed(seed)
    return _BUILDERS[name](classes, state, width)


def weights_key(weights: str | None) -> str:
    """Hash of the weights a network starts from: of the file's bytes, or of the name."""
    return content_hash(weights) if weights in (None, "torchvision") else file_hash(find_weights(str(weights)))
