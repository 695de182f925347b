"""The methods that EGA is compared with, one module each: settings and the ingredient they stand for."""

from repro.training.comparators.attention import (
    BackpropSettings,
    CCAMSettings,
    CombinedMaps,
    DANetSettings,
    DivergentActivation,
    GradientSegments,
    NLCCAMSettings,
    NonLocalBlocks,
    SelfProducedGuidance,
    SPGSettings,
)
from repro.training.comparators.erasing import (
    ACoLSettings,
    ADLSettings,
    AttentionDropLayers,
    ComplementaryClassifier,
    CutMixSettings,
    HaSSettings,
    HiddenPatches,
    MixedBoxes,
)
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings, WithEGA

__all__ = [
    "ACoLSettings",
    "ADLSettings",
    "AttentionDropLayers",
    "BackpropSettings",
    "BorrowsTraining",
    "CCAMSettings",
    "CombinedMaps",
    "ComparatorSettings",
    "ComplementaryClassifier",
    "CutMixSettings",
    "DANetSettings",
    "DivergentActivation",
    "GradientSegments",
    "HaSSettings",
    "HiddenPatches",
    "MixedBoxes",
    "NLCCAMSettings",
    "NonLocalBlocks",
    "SPGSettings",
    "SelfProducedGuidance",
    "WithEGA",
]
