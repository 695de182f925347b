"""CAM classifiers, dual batch norm, extractor/classifier splits, feature GAN."""

from repro.models.classifiers import ARCHITECTURES, Architecture, ArchitectureName, Classifier, load_classifier
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureDiscriminator, FeatureGANShape, FeatureGenerator
from repro.models.small_networks import SmallCNN, small_vit
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
    "Classifier",
    "FeatureClassifier",
    "FeatureDiscriminator",
    "FeatureExtractor",
    "FeatureGANShape",
    "FeatureGenerator",
    "SmallCNN",
    "SplitClassifier",
    "Weights",
    "WeightsUnavailable",
    "lenet5",
    "load_classifier",
    "resnet50_split",
    "small_vit",
    "split_classifier",
    "vgg16_32",
]
