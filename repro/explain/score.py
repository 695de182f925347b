"""Score-CAM (Wang 2020) and ScoreCAM++ (Mitra 2024) in all the readings that circulate, each with its provenance.

One settings class: ScoreCAM++ is Score-CAM with a gate in place of min-max, on the mask and on what is summed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.base import ClassActivationMap, LayerChoice, better_layer, check_words, upsample_map, warn
from repro.explain.engine import GATES, Baseline, EngineSettings, MaskedPasses, MaskedScores, MaskRule
from repro.explain.layer import Call, LayerReader, Layout, ModelInputs, Reshape, evaluation_mode, submodule
from repro.models.class_scores import ScoreSpace, Target, as_classes
from repro.vocabulary import Gate

SummedMap = Literal["lowres", "upsampled"]

_CHANNELS_AT_ONCE = 32  # gated channels of input size held in memory while summing


@dataclass(frozen=True)
class ScoreCAMSettings:
    """A reading of Score-CAM or ScoreCAM++.

    Default: Score-CAM as in haofanwang's code, which ScoreCAM++'s authors release a copy of. The other named readings
    are in `SCORE_CAM_PRESETS` and `SCORE_CAM_PLUS_PLUS_PRESETS`.
    """

    score_space: ScoreSpace = "probability"
    """Scale on which masked images are scored."""
    baseline: Baseline = "none"
    """What is subtracted from the score: `input` is ScoreCAM++'s eq. 5 and 10; a no-op under `channel_softmax`."""
    normalise: Literal["upsample_first", "lowres_first"] = "upsample_first"
    """Min-max of the upsampled channel, or min-max on the layer's grid and upsampling after it (torchcam)."""
    align_corners: bool = False
    """Upsampling of channels with aligned corners (pytorch-grad-cam's UpsamplingBilinear2d)."""
    channel_softmax: bool = False
    """Softmax of the scores over channels (Score-CAM paper, Algorithm 1)."""
    summed_map: SummedMap = "upsampled"
    """Sum and rectify on the layer's grid, then upsample (eq. 9 as printed); or upsample each channel, sum, rectify."""
    skip_constant: bool = True
    """Leave constant channels out of the sum; else they enter with the score of the all-zero image."""
    gate: Gate | None = None
    """s(.) of ScoreCAM++ (eq. 12; the others are Table 5's) in place of min-max; None: Score-CAM."""
    gate_on: Literal["mask", "both"] = "both"
    """Gate the mask only (Table 6 "Normalization") or also the channels that are summed (eq. 9)."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.gate is not None and self.normalise != "upsample_first":
            raise ValueError(
                f"normalise: {self.normalise!r} has no meaning with gate={self.gate!r}, which replaces min-max"
            )

    @property
    def rule(self) -> MaskRule:
        """How masks are made: min-max, or the gate of the upsampled channel (eq. 11)."""
        return MaskRule(self.gate, self.normalise, self.align_corners)

    def gated(self, values: Tensor) -> Tensor:
        """What is summed: the channels themselves, or through the gate if it is on both."""
        return values if self.gate is None or self.gate_on == "mask" else GATES[self.gate](values)

    def weights(self, scores: MaskedScores) -> Float[Tensor, "n k"]:
        """α: scores minus baseline, through the channel softmax if asked for, 0 for skipped channels."""
        if scores.rule != self.rule:
            raise ValueError(f"scores were made with {scores.rule}, the settings ask for {self.rule}; run them anew")
        alpha = scores.scores(self.score_space, self.baseline)
        if self.channel_softmax:
            alpha = alpha.softmax(dim=1)
        return alpha.masked_fill(self.rule.blank(scores.activations), 0) if self.skip_constant else alpha


SCORE_CAM_PRESETS: Mapping[str, ScoreCAMSettings] = MappingProxyType(
    {
        # Score-CAM paper, Algorithm 1, section 3.2: post-softmax scores, black baseline, channel softmax.
        "paper": ScoreCAMSettings(baseline="black", channel_softmax=True, summed_map="lowres", skip_constant=False),
        # ScoreCAM++ paper, eq. 3-7 to the letter: minus f(X), no softmax. Degenerate (docs/papers/scorecampp.md §1.4).
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
RELEASED_SCORE_CAM_PLUS_PLUS = ScoreCAMSettings(gate="tanh")
"""AquillaNatus/ScoreCAMpp 22c2d3a, cam/scorecampp_variants.py, class ScoreCAM_both.

The paper's eq. (10) subtracts f(X) from each weight. Masking an image nearly always lowers a confident network's score,
so these weights are nearly all negative and the ReLU of eq. (9) leaves an all-zero map (86-99 % of maps in a
toy, docs/papers/scorecampp.md §1.4). The released code subtracts nothing, and so does this default.
"""
SCORE_CAM_PLUS_PLUS_PRESETS: Mapping[str, ScoreCAMSettings] = MappingProxyType(
    {
        # Eq. 9-12 to the letter.
        "paper": ScoreCAMSettings(gate="tanh", baseline="input", summed_map="lowres"),
        "released": RELEASED_SCORE_CAM_PLUS_PLUS,
        # The same file's class ScoreCAM_norm: Table 6, column "Normalization".
        "normalization_only": ScoreCAMSettings(gate="tanh", gate_on="mask"),
    }
)

# From masked scores to maps: weights times channels, summed. No forward pass happens here.


def score_map_lowres(
    scores: MaskedScores, settings: ScoreCAMSettings, *, relu_attributions: bool = True
) -> Float[Tensor, "n 1 *grid"]:
    """Σ_k α_k G(A_k) on the layer's own grid, G the identity or the gate; cut off at 0 if `relu_attributions`.

    Where a gate is applied to upsampled channels (`summed_map="upsampled"`), this is the grid's own map,
    not a resized version of the full one.
    """
    channels = settings.gated(scores.activations)
    weights = settings.weights(scores).view(*channels.shape[:2], *[1] * (channels.ndim - 2))
    summed = (weights * channels).sum(dim=1, keepdim=True)
    return summed.relu() if relu_attributions else summed


def score_map(
    scores: MaskedScores, settings: ScoreCAMSettings, *, relu_attributions: bool = True
) -> Float[Tensor, "n 1 *size"]:
    """The map at input size, not normalised.

    `summed_map="lowres"`: Up(ReLU(Σ α_k G(A_k))); `"upsampled"`: ReLU(Σ α_k G(Up(A_k))).
    Raises `ValueError` if `scores` come from another mask rule than `settings` asks for.
    """
    if settings.summed_map == "lowres":
        return upsample_map(score_map_lowres(scores, settings, relu_attributions=relu_attributions), scores.size)
    if settings.gate is None or settings.gate_on == "mask":
        # Upsampling is linear: the sum is upsampled once instead of every channel.
        summed = scores.rule.upsample(score_map_lowres(scores, settings, relu_attributions=False), scores.size)
    else:
        summed = _gated_sum(scores, settings)
    return summed.relu() if relu_attributions else summed


def _gated_sum(scores: MaskedScores, settings: ScoreCAMSettings) -> Float[Tensor, "n 1 *size"]:
    weights = settings.weights(scores)
    total = scores.activations.new_zeros((len(weights), 1, *scores.size))
    for image, (channels, alpha) in enumerate(zip(scores.activations, weights, strict=True)):
        for start in range(0, len(channels), _CHANNELS_AT_ONCE):
            part = slice(start, start + _CHANNELS_AT_ONCE)
            gated = settings.gated(scores.rule.upsample(channels[part, None], scores.size))
            total[image] += torch.tensordot(alpha[part].to(gated.dtype), gated, dims=1)
    return total


class ScoreWeightedCAM(ClassActivationMap):
    """Base of Score-CAM and ScoreCAM++: run the masked passes, then weight and sum."""

    presets: Mapping[str, ScoreCAMSettings] = SCORE_CAM_PRESETS
    default = ScoreCAMSettings()

    def __init__(
        self,
        model: nn.Module,
        layer: LayerChoice,
        settings: ScoreCAMSettings | str | None = None,
        *,
        engine: EngineSettings | None = None,
        layout: Layout | None = None,
        grid: tuple[int, ...] | None = None,
        reshape: Reshape | None = None,
        call: Call | None = None,
    ) -> None:
        """Choose layer and reading; nothing is computed yet.

        Args:
            model, layer, layout, grid, reshape, call: as for every `ClassActivationMap`.
            settings: the reading, or the name of one (`presets`); default: the released code.
            engine: batch size, memory budget, floating type of the masked passes.

        Raises:
            ValueError: an unknown name, layer or word.
        """
        super().__init__(model, layer, layout=layout, grid=grid, reshape=reshape, call=call)
        if isinstance(settings, str):
            if settings not in self.presets:
                raise ValueError(
                    f"settings: {settings!r}; expected ScoreCAMSettings or one of {', '.join(self.presets)}"
                )
            settings = self.presets[settings]
        self.settings = settings or self.default
        self.engine = engine or EngineSettings()

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
    ) -> Any:
        """Map of each image for its target, shape (n, 1, h, w) at input size, not normalised (see `score_map`).

        Args:
            inputs: normalised images (n, c, h, w), signals (n, c, length) or volumes.
            target: class index for all images, one per image (list, array, tensor), or None for the predicted class.
            additional_forward_args: further arguments of the model's forward; tensors of n entries go with the images.
            attribute_to_layer_input: read what the layer gets in place of what it returns.
            relu_attributions: cut the map off at 0.

        Returns:
            The maps, at least in float32; a list of them where several layers were chosen.

        Raises:
            ValueError: inputs, targets, layer or network that cannot be explained, with what to do.
        """
        return self._maps(
            score_map, inputs, target, additional_forward_args, attribute_to_layer_input, relu_attributions
        )

    def attribute_lowres(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
    ) -> Any:
        """The map on the layer's own grid (see `score_map_lowres`); arguments as for `attribute`."""
        return self._maps(
            score_map_lowres, inputs, target, additional_forward_args, attribute_to_layer_input, relu_attributions
        )

    def _maps(self, make: Any, inputs: Any, target: Target, extra: Any, at_input: bool, relu_attributions: bool) -> Any:
        def explain(reader: LayerReader, given: ModelInputs, classes: Tensor | None) -> Tensor:
            scores = MaskedPasses(reader, self.engine).run(given, classes, self.settings.rule)
            maps = make(scores, self.settings, relu_attributions=relu_attributions)
            self._warn_of(reader, given, scores, maps)
            return maps

        return self._each_layer(inputs, target, extra, at_input, explain)

    def _warn_of(self, reader: LayerReader, given: ModelInputs, scores: MaskedScores, maps: Tensor) -> None:
        if bool((scores.activations < 0).any()) and (other := better_layer(reader, given, rectified=True)):
            share = 100 * (scores.activations < 0).float().mean().item()
            warn(
                f"{share:.0f} % of the activation of {reader.name} is negative: Score-CAM's masks then show the wrong "
                f"side of channels and point beside the object. Take a layer behind a rectifier, e.g. {other!r}"
            )
        if not bool(maps.flatten(1).any(dim=1).all()):
            cause = "no weighted channel is positive" if bool(scores.activations.any()) else "the activation is zero"
            warn(
                f"the map of {reader.name} is zero everywhere for some image: {cause}"
                + (f" (baseline={self.settings.baseline!r})" if self.settings.baseline != "none" else "")
            )


class ScoreCAM(ScoreWeightedCAM):
    """Score-CAM: channels weighted by the target's score on the image seen through them, Σ_k f(X∘H_k) A_k.

    Settings by name ("paper", "released", "torchcam", …) are in `SCORE_CAM_PRESETS`.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> ScoreCAM(resnet18(), "layer4", "paper").attribute(torch.randn(1, 3, 64, 64), target=3).shape
    torch.Size([1, 1, 64, 64])
    """


class ScoreCAMPlusPlus(ScoreWeightedCAM):
    """ScoreCAM++: ReLU(Σ_k f(X∘tanh(Up(A_k))) tanh(Up(A_k))) in the default reading (paper eq. 9-12).

    Settings by name ("paper", "released", "normalization_only") are in `SCORE_CAM_PLUS_PLUS_PRESETS`.

    >>> import torch
    >>> from torchvision.models import resnet18
    >>> ScoreCAMPlusPlus(resnet18(), "layer4").attribute(torch.randn(1, 3, 64, 64), target=3).shape
    torch.Size([1, 1, 64, 64])
    """

    presets = SCORE_CAM_PLUS_PLUS_PRESETS
    default = RELEASED_SCORE_CAM_PLUS_PLUS


def shared_score_maps(
    model: nn.Module,
    layer: nn.Module | str,
    inputs: Float[Tensor, "n c *size"],
    settings: Mapping[str, ScoreCAMSettings],
    target: Target = None,
    *,
    engine: EngineSettings | None = None,
) -> dict[str, Float[Tensor, "n 1 *size"]]:
    """Maps of several variants; those with equal mask rules share one run of the masked passes.

    Score space, baseline, channel softmax, what is summed and ScoreCAM++'s `gate_on` do not touch the
    masks: ten such variants cost as much as one.
    """
    name_of, module = submodule(model, layer)
    reader = LayerReader(model, module, name=name_of)
    given = ModelInputs.of(inputs)
    runs: dict[MaskRule, MaskedScores] = {}
    maps: dict[str, Tensor] = {}
    with evaluation_mode(model):
        for name, variant in settings.items():
            if variant.rule not in runs:
                classes = as_classes(target, len(given), inputs.device)
                runs[variant.rule] = MaskedPasses(reader, engine).run(given, classes, variant.rule)
            maps[name] = score_map(runs[variant.rule], variant)
    return maps
