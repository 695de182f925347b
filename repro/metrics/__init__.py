"""Faithfulness, localisation and classification metrics (torchmetrics)."""

from repro.metrics.faithfulness import (
    ExplanationMaps,
    ExplanationScores,
    FaithfulnessSettings,
    explanation_maps,
    explanation_scores,
)
from repro.metrics.faithfulness_metrics import (
    AverageDrop,
    AverageLogitDrop,
    DeletionAUC,
    IncreaseInConfidence,
    InsertionAUC,
    MeanMapArea,
    PerImageMetric,
    WinRate,
)
from repro.metrics.insertion_deletion import (
    InsertionDeletionCurves,
    InsertionDeletionSettings,
    insertion_deletion_curves,
)
from repro.metrics.map_area import AreaMatched, area_matched, whole_image

__all__ = [
    "AreaMatched",
    "AverageDrop",
    "AverageLogitDrop",
    "DeletionAUC",
    "ExplanationMaps",
    "ExplanationScores",
    "FaithfulnessSettings",
    "IncreaseInConfidence",
    "InsertionAUC",
    "InsertionDeletionCurves",
    "InsertionDeletionSettings",
    "MeanMapArea",
    "PerImageMetric",
    "WinRate",
    "area_matched",
    "explanation_maps",
    "explanation_scores",
    "insertion_deletion_curves",
    "whole_image",
]
