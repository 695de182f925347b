"""Training loops, replicas and the run store."""

from repro.training.batches import TrainingSettings
from repro.training.cam import (
    AdversarialExamples,
    EntropyTerm,
    Ingredient,
    LocalisationMaps,
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
from repro.training.ega import EGASettings, train_ega
from repro.training.run_store import Diverged, Run, RunBusy, RunConfig, RunResult, RunStore

__all__ = [
    "AdversarialExamples",
    "ClassifierRun",
    "ClassifierSettings",
    "Diverged",
    "EGASettings",
    "EntropyTerm",
    "Ingredient",
    "LocalisationMaps",
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
