"""Score-CAM (Wang 2020) in all the readings that circulate, each with its provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.layer import ClassActivationMap, Reshape, Target, upsample_map
from repro.explain.masked_scores import (
    Baseline,
    EngineSettings,
    Gate,
    MaskedPasses,
    MaskedScores,
    MaskRule,
    ScoreSpace,
    gate_function,
)

# From masked scores to maps: weights times channels, summed. No forward pass happens here.

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


@dataclass(frozen=True)
class ScoreCAMSettings:
    """A reading of Score-CAM. Default: haofanwang's code, which ScoreCAM++'s authors release a copy of."""

    score_space: ScoreSpace = "probability"
    """Scale on which masked images are scored."""
    baseline: Baseline = "none"
    """What is subtracted from the score; any baseline is a no-op under `channel_softmax`."""
    normalise: Literal["upsample_first", "lowres_first"] = "upsample_first"
    """Min-max of the upsampled channel, or min-max on the layer's grid and upsampling after it (torchcam)."""
    align_corners: bool = False
    """Upsampling of channels with aligned corners (pytorch-grad-cam's UpsamplingBilinear2d)."""
    channel_softmax: bool = False
    """Softmax of the scores over channels (Score-CAM paper, Algorithm 1)."""
    summed_map: SummedMap = "upsampled"
    """Sum and rectify on the layer's grid, then upsample; or upsample each channel, sum, rectify."""
    skip_constant: bool = True
    """Leave constant channels out of the sum; else they enter with the score of the all-zero image."""

    @property
    def rule(self) -> MaskRule:
        """Min-max masks."""
        return MaskRule(gate=None, normalise=self.normalise, align_corners=self.align_corners)

    @property
    def summed_gate(self) -> Gate | None:
        """None: Score-CAM sums the channels themselves."""
        return None

    def weights(self, scores: MaskedScores) -> Float[Tensor, "n k"]:
        """α: scores minus baseline, through the channel softmax if asked for, 0 for skipped channels."""
        alpha = scores.scores(self.score_space, self.baseline)
        if self.channel_softmax:
            alpha = alpha.softmax(dim=1)
        return alpha.masked_fill(self.rule.blank(scores.activations), 0) if self.skip_constant else alpha


SCORE_CAM_PRESETS: Mapping[str, ScoreCAMSettings] = MappingProxyType(
    {
        # Score-CAM paper, Algorithm 1, section 3.2: post-softmax scores, black baseline, channel softmax.
        "paper": ScoreCAMSettings(baseline="black", channel_softmax=True, summed_map="lowres", skip_constant=False),
        # ScoreCAM++ paper, eq. 3-7 to the letter: minus f(X), no softmax. Degenerate (digest §1.4).
        "scorecampp_paper": ScoreCAMSettings(baseline="input", summed_map="lowres", skip_constant=False),
        # AquillaNatus/ScoreCAMpp 22c2d3a, cam/scorecam.py: the same method as haofanwang's.
        "released": ScoreCAMSettings(),
        # haofanwang/Score-CAM d312f14.
        "haofanwang": ScoreCAMSettings(),
        # grad-cam 1.5.7 with its default target (raw logit).
        "pytorch-grad-cam": ScoreCAMSettings(
            score_space="logit",
            align_corners=True,
            channel_softmax=True,
            summed_map="lowres",
            skip_constant=False,
        ),
        # torchcam 0.5.0.
        "torchcam": ScoreCAMSettings(
            score_space="logit",
            baseline="input",
            normalise="lowres_first",
            channel_softmax=True,
            summed_map="lowres",
            skip_constant=False,
        ),
    }
)


class ScoreCAM(ScoreWeightedCAM):
    """Score-CAM: channels weighted by the target's score on the image seen through them.

    Args:
        model, layer, reshape: as for every `ClassActivationMap`.
        settings: the reading; default the released code. Named ones are in `SCORE_CAM_PRESETS`.
        engine: batch size, memory budget, floating type of the masked passes.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        settings: ScoreCAMSettings | None = None,
        *,
        engine: EngineSettings | None = None,
        reshape: Reshape | None = None,
    ) -> None:
        super().__init__(model, layer, settings or ScoreCAMSettings(), engine=engine, reshape=reshape)


# ScoreCAM++ (Mitra 2024): Score-CAM with a gate in place of min-max, on the mask and on what is summed.


@dataclass(frozen=True)
class ScoreCAMPlusPlusSettings:
    """A reading of ScoreCAM++. The default is the released code.

    The paper's eq. (10) subtracts f(X) from each weight. Masking an image nearly always lowers a confident
    network's score, so these weights are nearly all negative and the ReLU of eq. (9) leaves an all-zero
    map (86-99 % of maps in the digest's toy, §1.4). The released code subtracts nothing, and so does the
    default.
    """

    gate: Gate = "tanh"
    """s(.) of eq. 12; the others are Table 5's, `sigmoid_relu` the released code's "Sigmoid"."""
    gate_on: Literal["mask", "both"] = "both"
    """Gate the mask only (Table 6 "Normalization") or also the channels that are summed (eq. 9)."""
    score_space: ScoreSpace = "probability"
    """Scale on which masked images are scored."""
    baseline: Baseline = "none"
    """What is subtracted from the score: `input` is eq. 10."""
    summed_map: SummedMap = "upsampled"
    """Eq. 9 sums tanh(A) as printed (`lowres`); the released code sums tanh(Up(A))."""

    @property
    def rule(self) -> MaskRule:
        """Gated masks, upsampled before the gate (eq. 11)."""
        return MaskRule(gate=self.gate)

    @property
    def summed_gate(self) -> Gate | None:
        """The gate, if it is on both."""
        return self.gate if self.gate_on == "both" else None

    def weights(self, scores: MaskedScores) -> Float[Tensor, "n k"]:
        """α: scores minus baseline (eq. 10 with `baseline="input"`)."""
        return scores.scores(self.score_space, self.baseline)


SCORE_CAM_PLUS_PLUS_PRESETS: Mapping[str, ScoreCAMPlusPlusSettings] = MappingProxyType(
    {
        # Eq. 9-12 to the letter.
        "paper": ScoreCAMPlusPlusSettings(baseline="input", summed_map="lowres"),
        # AquillaNatus/ScoreCAMpp 22c2d3a, cam/scorecampp_variants.py, class ScoreCAM_both.
        "released": ScoreCAMPlusPlusSettings(),
        # The same file's class ScoreCAM_norm: Table 6, column "Normalization".
        "normalization_only": ScoreCAMPlusPlusSettings(gate_on="mask"),
    }
)


class ScoreCAMPlusPlus(ScoreWeightedCAM):
    """ScoreCAM++: ReLU(Σ_k f(X∘tanh(Up(A_k))) tanh(Up(A_k))) in the default reading (paper eq. 9-12).

    Args:
        model, layer, reshape: as for every `ClassActivationMap`.
        settings: the reading; default the released code. Named ones are in `SCORE_CAM_PLUS_PLUS_PRESETS`.
        engine: batch size, memory budget, floating type of the masked passes.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        settings: ScoreCAMPlusPlusSettings | None = None,
        *,
        engine: EngineSettings | None = None,
        reshape: Reshape | None = None,
    ) -> None:
        super().__init__(model, layer, settings or ScoreCAMPlusPlusSettings(), engine=engine, reshape=reshape)
