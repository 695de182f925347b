"""The methods that EGA is compared with, one module each: settings and the ingredient they stand for."""

from repro.training.comparators.acol import ACoLSettings, ComplementaryClassifier
from repro.training.comparators.adl import ADLSettings, AttentionDropLayers
from repro.training.comparators.backprop import BackpropSettings, GradientSegments
from repro.training.comparators.ccam import CCAMSettings, CombinedMaps, NLCCAMSettings, NonLocalBlocks
from repro.training.comparators.composed import WithEGA
from repro.training.comparators.cutmix import CutMixSettings, MixedBoxes
from repro.training.comparators.danet import DANetSettings, DivergentActivation
from repro.training.comparators.has import HaSSettings, HiddenPatches
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings
from repro.training.comparators.spg import SelfProducedGuidance, SPGSettings

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
