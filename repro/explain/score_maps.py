"""From masked scores to maps: weights times channels, summed. No forward pass happens here."""

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.class_activation_map import ClassActivationMap, upsample_map
from repro.explain.layer_activation import Reshape, Target
from repro.explain.masked_scores import (
    EngineSettings,
    Gate,
    MaskedPasses,
    MaskedScores,
    MaskRule,
    gate_function,
)

SummedMap = Literal["lowres", "upsampled"]

_CHANNELS_AT_ONCE = 32  # gated channels of input size held in memory while summing


@runtime_checkable
class ScoreMapSettings(Protocol):
    """What Score-CAM's and ScoreCAM++'s settings have in common."""

    @property
    def rule(self) -> MaskRule:
        """How masks are made."""

    @property
    def summed_gate(self) -> Gate | None:
        """Gate applied to the channels that are summed; None: the channels themselves."""

    @property
    def summed_map(self) -> SummedMap:
        """Sum and rectify on the layer's grid, then upsample — or upsample each channel first."""

    def weights(self, scores: MaskedScores) -> Float[Tensor, "n k"]:
        """Channel weights α."""


def score_map_lowres(
    scores: MaskedScores, settings: ScoreMapSettings, *, signed: bool = False
) -> Float[Tensor, "n 1 a b"]:
    """Σ_k α_k G(A_k) on the layer's own grid, G the identity or the gate; after the ReLU unless `signed`.

    Where a gate is applied to upsampled channels (`summed_map="upsampled"`), this is the grid's own map,
    not a resized version of the full one.
    """
    weights = _checked_weights(scores, settings)
    summed = (weights[:, :, None, None] * _gated(settings, scores.activations)).sum(dim=1, keepdim=True)
    return summed if signed else summed.relu()


def score_map(scores: MaskedScores, settings: ScoreMapSettings, *, signed: bool = False) -> Float[Tensor, "n 1 h w"]:
    """The map at input size, >= 0 unless `signed` (the map before the ReLU), not normalised.

    `summed_map="lowres"`: Up(ReLU(Σ α_k G(A_k))); `"upsampled"`: ReLU(Σ α_k G(Up(A_k))).
    Raises `ValueError` if `scores` come from another mask rule than `settings` asks for.
    """
    if settings.summed_map == "lowres":
        return upsample_map(score_map_lowres(scores, settings, signed=signed), scores.size)
    if settings.summed_gate is None:
        # Upsampling is linear: the sum is upsampled once instead of every channel.
        summed = scores.rule.upsample(score_map_lowres(scores, settings, signed=True), scores.size)
    else:
        summed = _gated_sum(scores, settings, _checked_weights(scores, settings))
    return summed if signed else summed.relu()


def _gated_sum(
    scores: MaskedScores, settings: ScoreMapSettings, weights: Float[Tensor, "n k"]
) -> Float[Tensor, "n 1 h w"]:
    total = scores.activations.new_zeros((len(weights), 1, *scores.size))
    for image, (channels, alpha) in enumerate(zip(scores.activations, weights, strict=True)):
        for start in range(0, len(channels), _CHANNELS_AT_ONCE):
            part = slice(start, start + _CHANNELS_AT_ONCE)
            gated = _gated(settings, scores.rule.upsample(channels[part, None], scores.size))
            total[image] += torch.tensordot(alpha[part].to(gated.dtype), gated, dims=1)
    return total


def _gated(settings: ScoreMapSettings, values: Tensor) -> Tensor:
    return values if settings.summed_gate is None else gate_function(settings.summed_gate, values)


def _checked_weights(scores: MaskedScores, settings: ScoreMapSettings) -> Float[Tensor, "n k"]:
    if scores.rule != settings.rule:
        raise ValueError(f"scores were made with {scores.rule}, the settings ask for {settings.rule}; run them anew")
    return settings.weights(scores)


class ScoreWeightedCAM(ClassActivationMap):
    """Base of Score-CAM and ScoreCAM++: run the masked passes, then weight and sum."""

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        settings: ScoreMapSettings,
        *,
        engine: EngineSettings | None = None,
        reshape: Reshape | None = None,
    ) -> None:
        super().__init__(model, layer, reshape=reshape)
        self.settings = settings
        self.passes = MaskedPasses(model, layer, settings=engine, reshape=reshape)

    def attribute(
        self, inputs: Float[Tensor, "n c h w"], target: Target = None, *, signed: bool = False
    ) -> Float[Tensor, "n 1 h w"]:
        """Map of each image for its target (None: the predicted class), see `score_map`."""
        return score_map(self.passes.run(inputs, target, self.settings.rule), self.settings, signed=signed)

    def attribute_lowres(
        self, inputs: Float[Tensor, "n c h w"], target: Target = None, *, signed: bool = False
    ) -> Float[Tensor, "n 1 a b"]:
        """The map on the layer's own grid, see `score_map_lowres`."""
        return score_map_lowres(self.passes.run(inputs, target, self.settings.rule), self.settings, signed=signed)


def shared_score_maps(
    passes: MaskedPasses,
    inputs: Float[Tensor, "n c h w"],
    settings: Mapping[str, ScoreMapSettings],
    target: Target = None,
) -> dict[str, Float[Tensor, "n 1 h w"]]:
    """Maps of several variants; those with equal mask rules share one run of the masked passes.

    Score space, baseline, channel softmax, what is summed and ScoreCAM++'s `gate_on` do not touch the
    masks: ten such variants cost as much as one.
    """
    runs: dict[MaskRule, MaskedScores] = {}
    maps: dict[str, Tensor] = {}
    for name, variant in settings.items():
        if variant.rule not in runs:
            runs[variant.rule] = passes.run(inputs, target, variant.rule)
        maps[name] = score_map(runs[variant.rule], variant)
    return maps
