"""CAM classifiers, dual batch norm, extractor/classifier splits, feature GAN."""

from repro.models.cam_backbones import googlenet_cam, inception_v3_cam, small_cam, squeezenet_cam, vgg16_cam
from repro.models.cam_network import CAMNetwork, CAMOutput
from repro.models.classifiers import ARCHITECTURES, Architecture, ArchitectureName, Classifier, load_classifier
from repro.models.dual_batch_norm import (
    DualBatchNorm2d,
    GlobalBatchNorm2d,
    Route,
    drop_auxiliary,
    has_dual_batch_norm,
    route_batch_norm,
    to_dual_batch_norm,
    to_global_batch_norm,
)
from repro.models.small_networks import SmallCNN, small_vit
from repro.models.weights import Weights, WeightsUnavailable

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureName",
    "CAMNetwork",
    "CAMOutput",
    "Classifier",
    "DualBatchNorm2d",
    "GlobalBatchNorm2d",
    "Route",
    "SmallCNN",
    "Weights",
    "WeightsUnavailable",
    "drop_auxiliary",
    "googlenet_cam",
    "has_dual_batch_norm",
    "inception_v3_cam",
    "load_classifier",
    "route_batch_norm",
    "small_cam",
    "small_vit",
    "squeezenet_cam",
    "to_dual_batch_norm",
    "to_global_batch_norm",
    "vgg16_cam",
]
