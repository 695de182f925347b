"""ScoreCAM++ (Mitra 2024): Score-CAM with a gate in place of min-max, on the mask and on what is summed."""

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
