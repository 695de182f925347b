"""Class activation maps in Captum's LayerAttribution convention."""

from repro.explain.augmented_grad_cam import (
    RELEASED_AUGMENTATION,
    AugmentationSettings,
    AugmentedGradCAMPlusPlus,
    SuperResolutionSettings,
)
from repro.explain.gradient_cams import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from repro.explain.layer import ClassActivationMap
from repro.explain.masked_scores import EngineSettings, MaskedPasses, MaskedScores, MaskRule
from repro.explain.score_cam import (
    SCORE_CAM_PLUS_PLUS_PRESETS,
    SCORE_CAM_PRESETS,
    ScoreCAM,
    ScoreCAMPlusPlus,
    ScoreCAMPlusPlusSettings,
    ScoreCAMSettings,
    score_map,
    score_map_lowres,
    shared_score_maps,
)

__all__ = [
    "RELEASED_AUGMENTATION",
    "SCORE_CAM_PLUS_PLUS_PRESETS",
    "SCORE_CAM_PRESETS",
    "AugmentationSettings",
    "AugmentedGradCAMPlusPlus",
    "ClassActivationMap",
    "EngineSettings",
    "GradCAM",
    "GradCAMPlusPlus",
    "LayerCAM",
    "MaskRule",
    "MaskedPasses",
    "MaskedScores",
    "ScoreCAM",
    "ScoreCAMPlusPlus",
    "ScoreCAMPlusPlusSettings",
    "ScoreCAMSettings",
    "SuperResolutionSettings",
    "XGradCAM",
    "score_map",
    "score_map_lowres",
    "shared_score_maps",
]
