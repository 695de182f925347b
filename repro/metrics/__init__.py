"""Faithfulness, localisation and classification metrics (torchmetrics)."""

from repro.metrics.box_curves import (
    BOX_RULES,
    BoxCurves,
    BoxRule,
    Comparison,
    Convention,
    Normalisation,
    box_curves,
    map_scores,
    scale_boxes,
)
from repro.metrics.center_baseline import center_gaussian, center_gaussian_curves
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
from repro.metrics.localisation import (
    BoxAccuracy,
    CorLoc,
    GTKnownLoc,
    LocalisationResult,
    MaxBoxAcc,
    MaxBoxAccV2,
    Top1Loc,
    Top5Loc,
)
from repro.metrics.map_area import AreaMatched, area_matched, whole_image
from repro.metrics.pixel_precision import PxAP, average_precision, combine_masks, pixel_histograms
from repro.metrics.ten_crop import ClassificationError, ten_crop_scores, top_k_correct
from repro.metrics.thresholds import (
    THRESHOLDS,
    FixedThreshold,
    OracleThreshold,
    ThresholdPolicy,
    ValidationThreshold,
)

__all__ = [
    "BOX_RULES",
    "THRESHOLDS",
    "AreaMatched",
    "AverageDrop",
    "AverageLogitDrop",
    "BoxAccuracy",
    "BoxCurves",
    "BoxRule",
    "ClassificationError",
    "Comparison",
    "Convention",
    "CorLoc",
    "DeletionAUC",
    "ExplanationMaps",
    "ExplanationScores",
    "FaithfulnessSettings",
    "FixedThreshold",
    "GTKnownLoc",
    "IncreaseInConfidence",
    "InsertionAUC",
    "InsertionDeletionCurves",
    "InsertionDeletionSettings",
    "LocalisationResult",
    "MaxBoxAcc",
    "MaxBoxAccV2",
    "MeanMapArea",
    "Normalisation",
    "OracleThreshold",
    "PerImageMetric",
    "PxAP",
    "ThresholdPolicy",
    "Top1Loc",
    "Top5Loc",
    "ValidationThreshold",
    "WinRate",
    "area_matched",
    "average_precision",
    "box_curves",
    "center_gaussian",
    "center_gaussian_curves",
    "combine_masks",
    "explanation_maps",
    "explanation_scores",
    "insertion_deletion_curves",
    "map_scores",
    "pixel_histograms",
    "scale_boxes",
    "ten_crop_scores",
    "top_k_correct",
    "whole_image",
]
