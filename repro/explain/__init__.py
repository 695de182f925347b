"""Class activation maps in Captum's LayerAttribution convention."""

from repro.explain.augmented import (
    RELEASED_AUGMENTATION,
    AugmentationSettings,
    AugmentedGradCAMPlusPlus,
    SuperResolutionSettings,
)
from repro.explain.base import ClassActivationMap, LayerInfo, layers
from repro.explain.engine import EngineSettings, MaskedPasses, MaskedScores, MaskRule
from repro.explain.gradient import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from repro.explain.score import (
    SCORE_CAM_PLUS_PLUS_PRESETS,
    SCORE_CAM_PRESETS,
    ScoreCAM,
    ScoreCAMPlusPlus,
    ScoreCAMSettings,
    score_map,
    score_map_lowres,
    shared_score_maps,
)
from repro.explain.show import overlay

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
    "LayerInfo",
    "MaskRule",
    "MaskedPasses",
    "MaskedScores",
    "ScoreCAM",
    "ScoreCAMPlusPlus",
    "ScoreCAMSettings",
    "SuperResolutionSettings",
    "XGradCAM",
    "layers",
    "overlay",
    "score_map",
    "score_map_lowres",
    "shared_score_maps",
]
