"""CAM classifiers, dual batch norm, extractor/classifier splits, feature GAN."""

from repro.models.classifiers import ARCHITECTURES, Architecture, ArchitectureName, Classifier, load_classifier
from repro.models.small_networks import SmallCNN, small_vit
from repro.models.weights import Weights, WeightsUnavailable

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ArchitectureName",
    "Classifier",
    "SmallCNN",
    "Weights",
    "WeightsUnavailable",
    "load_classifier",
    "small_vit",
]
