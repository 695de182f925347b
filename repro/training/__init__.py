"""Training loops, replicas and the run store."""

from repro.training.batches import TrainingSettings
from repro.training.cam import (
    Ingredient,
    LocalisationMaps,
    Method,
    OutOfDeviceMemory,
    SeenBatch,
    StepContext,
    evaluate_localisation,
    prepare_network,
    ten_crop_probabilities,
    train_cam,
)
from repro.training.classifier import (
    ClassifierRun,
    ClassifierSettings,
    accuracy,
    predicted_classes,
    train_classifier,
)
from repro.training.ega import AdversarialExamples, CAMSettings, EGASettings, EntropyTerm, train_ega
from repro.training.run_store import Diverged, Run, RunBusy, RunConfig, RunResult, RunStore

__all__ = [
    "AdversarialExamples",
    "CAMSettings",
    "ClassifierRun",
    "ClassifierSettings",
    "Diverged",
    "EGASettings",
    "EntropyTerm",
    "Ingredient",
    "LocalisationMaps",
    "Method",
    "OutOfDeviceMemory",
    "Run",
    "RunBusy",
    "RunConfig",
    "RunResult",
    "RunStore",
    "SeenBatch",
    "StepContext",
    "TrainingSettings",
    "accuracy",
    "evaluate_localisation",
    "predicted_classes",
    "prepare_network",
    "ten_crop_probabilities",
    "train_cam",
    "train_classifier",
    "train_ega",
]
