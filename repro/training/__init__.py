"""Training loops, replicas and the run store."""

from repro.training.classifier import (
    ClassifierRun,
    ClassifierSettings,
    accuracy,
    predicted_classes,
    train_classifier,
)
from repro.training.run import Diverged, Run
from repro.training.run_store import RunConfig, RunResult, RunStore

__all__ = [
    "ClassifierRun",
    "ClassifierSettings",
    "Diverged",
    "Run",
    "RunConfig",
    "RunResult",
    "RunStore",
    "accuracy",
    "predicted_classes",
    "train_classifier",
]
