"""CAM classifiers, dual batch norm, extractor/classifier splits, feature GAN."""

from repro.models.cam_backbones import (
    alexnet_gap,
    googlenet_cam,
    inception_v3_cam,
    small_cam,
    small_inception,
    squeezenet_cam,
    vgg16_cam,
)
from repro.models.cam_network import CAMNetwork, CAMOutput, pooled_maps
from repro.models.classifiers import (
    ARCHITECTURES,
    Architecture,
    ArchitectureName,
    Classifier,
    SmallCNN,
    load_classifier,
    small_vit,
)
from repro.models.dual_batch_norm import (
    DualBatchNorm2d,
    GlobalBatchNorm2d,
    Route,
    has_dual_batch_norm,
    route_batch_norm,
    to_dual_batch_norm,
    to_global_batch_norm,
)
from repro.models.feature_gan import (
    FEATURE_GAN_SHAPES,
    FeatureDiscriminator,
    FeatureGANShape,
    FeatureGenerator,
)
from repro.models.split_classifier import (
    FeatureClassifier,
    FeatureExtractor,
    SplitClassifier,
    lenet5,
    resnet50_split,
    split_classifier,
    vgg16_32,
)
from repro.models.weights import Weights, WeightsUnavailable

__all__ = [
    "ARCHITECTURES",
    "FEATURE_GAN_SHAPES",
    "Architecture",
    "ArchitectureName",
    "CAMNetwork",
    "CAMOutput",
    "Classifier",
    "DualBatchNorm2d",
    "FeatureClassifier",
    "FeatureDiscriminator",
    "FeatureExtractor",
    "FeatureGANShape",
    "FeatureGenerator",
    "GlobalBatchNorm2d",
    "Route",
    "SmallCNN",
    "SplitClassifier",
    "Weights",
    "WeightsUnavailable",
    "alexnet_gap",
    "googlenet_cam",
    "has_dual_batch_norm",
    "inception_v3_cam",
    "lenet5",
    "load_classifier",
    "pooled_maps",
    "resnet50_split",
    "route_batch_norm",
    "small_cam",
    "small_inception",
    "small_vit",
    "split_classifier",
    "squeezenet_cam",
    "to_dual_batch_norm",
    "to_global_batch_norm",
    "vgg16_32",
    "vgg16_cam",
]
