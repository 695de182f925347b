"""CAM entropy, PGD, WGAN-GP, DELTA and the DFG objectives."""

from repro.losses.attack import AttackSettings, pgd_attack
from repro.losses.cam import EntropyForm, cam_entropy, ega_loss, unit_range
from repro.losses.delta import channel_attention, delta_regularizer, knockout_loss_increase
from repro.losses.dfg import (
    active_filters,
    blend_filter_weights,
    class_balanced_weights,
    class_filter_weights,
    classification_loss,
    classifier_objective,
    critic_loss,
    generator_loss,
    gradient_penalty,
    inverse_frequency_weights,
    sample_cross_entropy,
    sample_filter_weights,
)

__all__ = [
    "AttackSettings",
    "EntropyForm",
    "active_filters",
    "blend_filter_weights",
    "cam_entropy",
    "channel_attention",
    "class_balanced_weights",
    "class_filter_weights",
    "classification_loss",
    "classifier_objective",
    "critic_loss",
    "delta_regularizer",
    "ega_loss",
    "generator_loss",
    "gradient_penalty",
    "inverse_frequency_weights",
    "knockout_loss_increase",
    "pgd_attack",
    "sample_cross_entropy",
    "sample_filter_weights",
    "unit_range",
]
