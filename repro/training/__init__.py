"""Training loops, replicas and the run store."""

from repro.training.classifier import (
    PAPER_FINE_TUNING,
    QUICK_FINE_TUNING,
    SMALL_NETWORK,
    ClassifierRun,
    ClassifierSettings,
    TrainedClassifier,
    accuracy,
    predicted_classes,
    train_classifier,
)
from repro.training.run import Diverged, Run
from repro.training.run_store import RunConfig, RunResult, RunStore

__all__ = [
    "PAPER_FINE_TUNING",
    "QUICK_FINE_TUNING",
    "SMALL_NETWORK",
    "ClassifierRun",
    "ClassifierSettings",
    "Diverged",
    "Run",
    "RunConfig",
    "RunResult",
    "RunStore",
    "TrainedClassifier",
    "accuracy",
    "predicted_classes",
    "train_classifier",
]
