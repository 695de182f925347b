"""Score-CAM (Wang 2020) in all the readings that circulate, each with its provenance."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.layer_activation import Reshape
from repro.explain.masked_scores import Baseline, EngineSettings, Gate, MaskedScores, MaskRule, ScoreSpace
from repro.explain.score_maps import ScoreWeightedCAM, SummedMap


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
