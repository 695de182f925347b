"""Training loops, replicas and the run store."""

from repro.training.cam import OutOfDeviceMemory, prepare_network, train_cam
from repro.training.classifier import ClassifierRun, ClassifierSettings, accuracy, predicted_classes, train_classifier
from repro.training.ega import EGASettings, train_ega
from repro.training.ingredients import AdversarialExamples, EntropyTerm, Ingredient, SeenBatch, StepContext
from repro.training.localisation import LocalisationMaps, evaluate_localisation, ten_crop_probabilities
from repro.training.run import Diverged, Run
from repro.training.run_store import RunBusy, RunConfig, RunResult, RunStore
from repro.training.settings import TrainingSettings

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
