"""The methods that EGA is compared with, one module each: settings and the ingredient they stand for."""

from repro.training.comparators.acol import ACoLSettings, ComplementaryClassifier

__all__ = ["ACoLSettings", "ComplementaryClassifier"]
