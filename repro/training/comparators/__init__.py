"""The methods that EGA is compared with, one module each: settings and the ingredient they stand for."""

from repro.training.comparators.acol import ACoLSettings, ComplementaryClassifier
from repro.training.comparators.danet import DANetSettings, DivergentActivation
from repro.training.comparators.spg import SelfProducedGuidance, SPGSettings

__all__ = [
    "ACoLSettings",
    "ComplementaryClassifier",
    "DANetSettings",
    "DivergentActivation",
    "SPGSettings",
    "SelfProducedGuidance",
]
