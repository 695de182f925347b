"""Every number, every reading and every method of DFG's tables as frozen typed data (Algorithm 1 and Appendix A).

`DFGReadings.paper()` is the text, `DFGReadings.released()` what the authors' code (commit 41fa92d, 2022) does.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from repro.losses.dfg import ThresholdUnit
from repro.models.feature_gan import GeneratorOrder, WeightPosition
from repro.models.split_classifier import Architecture
from repro.training.sampling import CriticBatches, InputScale
from repro.vocabulary import DFGMethod


class DFGReadings(BaseModel):
    """Where the paper is silent, contradicts itself, or is contradicted by its released code.

    Question, options and evidence of every field stand in the ledger, `repro/evidence/readings/dfg.yaml`; a test holds
    the two together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    critic_slope: float = 0.2
    filter_weight_sign: Literal["loss_increase", "inverted"] = "loss_increase"
    filter_weight_position: WeightPosition = "inside_norm"
    filter_weight_scale: Literal["filters", "raw"] = "filters"
    rho_blend: Literal["blend", "target_only"] = "blend"
    initial_threshold: float = 0.95
    threshold_unit: ThresholdUnit = "filters"
    threshold_on: Literal["blend", "target"] = "blend"
    filter_update_gate: float | None = None
    knockout_bias: Literal["zeroed", "kept"] = "zeroed"
    filter_weight_images: PositiveInt | None = None
    source_head: Literal["as_trained", "refitted"] = "as_trained"
    hidden: tuple[PositiveInt, PositiveInt] = (120, 84)
    dropout: float = 0.0
    real_loss_count: PositiveInt = 1
    critic_batches: CriticBatches = "fresh"
    generator_order: GeneratorOrder = "activation_then_norm"
    convolution_bias: bool = True
    resize: Literal["squash", "crop"] = "squash"
    test_crop: Literal["central", "none"] = "central"
    input_scale: InputScale = "symmetric"
    fixed_batch_norm: Literal["fixed", "moving"] = "fixed"

    @classmethod
    def paper(cls) -> "DFGReadings":
        """The text of the paper."""
        return cls()

    @classmethod
    def released(cls) -> "DFGReadings":
        """What the released code does."""
        return cls(
            critic_slope=1.0,
            filter_weight_sign="inverted",
            filter_weight_position="after_norm",
            filter_weight_scale="raw",
            rho_blend="target_only",
            threshold_on="target",
            initial_threshold=0.90,
            filter_update_gate=0.05,
            knockout_bias="kept",
            filter_weight_images=10,
            hidden=(1024, 128),
            dropout=0.5,
            real_loss_count=2,
            critic_batches="window",
            generator_order="norm_then_activation",
            convolution_bias=False,
            test_crop="none",
        )


class DFGSettings(BaseModel):
    """Schedule and coefficients shared by all methods of Table 2; defaults are the paper's for LeNet-5 on SVHN."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "lenet5"
    iterations: PositiveInt = 20_000
    """Training steps (Appendix A)."""
    batch: PositiveInt = 64
    critic_updates: PositiveInt = 5
    """n_D of Algorithm 1."""
    classes_every: PositiveInt = 2
    """n_C1: every so many steps G learns from C (4c), and E and C from real data."""
    merged_every: PositiveInt = 10
    """n_C2: every so many steps C learns from real and generated features (4)."""
    filter_weights_every: PositiveInt = 5_000
    """n_W: steps between updates of the class-wise filter weights."""
    rho: float = 0.75
    """ρ of eq. (7): share of the source's filter weights."""
    threshold: float = 0.95
    """δ, in units of the mean filter weight."""
    objective: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    """α, β, γ of eq. (4)."""
    penalty: float = 10.0
    """λ of eq. (1)."""
    network_optimiser: Literal["adam", "sgd"] = "adam"
    """Of E and C: Adam(0.5, 0.9), or SGD with momentum 0.9 (ResNet-50). G and D always use Adam(0.5, 0.9)."""
    network_lr: PositiveFloat = 2e-5
    """η_E = η_C."""
    network_lr_drop: NonNegativeInt = 0
    """Step after which η_E and η_C are divided by 10 (ResNet-50: 20,000); 0 is never."""
    generator_lr: PositiveFloat = 2e-4
    critic_lr: PositiveFloat = 1e-4
    map_penalty: float = 0.01
    """DELTA's α for Ω, also in L_E and L_rC of DFG; not in the paper, the default of both released codes."""
    head_penalty: float = 0.01
    """DELTA's β: β·½‖last layer's weight‖²."""
    evaluations: PositiveInt = 20
    """Test and held-out accuracy are measured this often, evenly spaced, the last time at the end."""

    @model_validator(mode="after")
    def _whole_cycles(self) -> "DFGSettings":
        for name in ("iterations", "filter_weights_every"):
            if getattr(self, name) % self.cycle:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be a multiple of {self.cycle}, the least common multiple of "
                    f"classes_every={self.classes_every} and merged_every={self.merged_every}"
                )
        drop = self.network_lr_drop
        if drop and (drop % self.cycle or drop >= self.iterations):
            raise ValueError(
                f"network_lr_drop={drop} never happens in {self.iterations} iterations, {self.cycle} at a time; "
                f"give a multiple of {self.cycle} below {self.iterations}, or 0 for none"
            )
        return self

    @property
    def cycle(self) -> int:
        """Steps after which Algorithm 1's inner pattern repeats: lcm(n_C1, n_C2)."""
        return math.lcm(self.classes_every, self.merged_every)

    def evaluate_after(self, cycle: int) -> bool:
        """Whether to evaluate after this cycle (counted from 0)."""
        cycles = self.iterations // self.cycle
        return ((cycle + 1) * self.evaluations) // cycles > (cycle * self.evaluations) // cycles

    @property
    def real_updates(self) -> int:
        """Steps of E and C on real data that Algorithm 1 takes; the other methods take one in every iteration."""
        return self.iterations // self.classes_every


_VGG = {"architecture": "vgg16_32", "network_lr": 5e-5, "generator_lr": 1e-4, "critic_lr": 1e-4}
_RESNET = {
    "architecture": "resnet50",
    "iterations": 40_000,
    "classes_every": 1,
    "merged_every": 5,
    "filter_weights_every": 2_000,
    "network_optimiser": "sgd",
    "network_lr": 0.01,
    "network_lr_drop": 20_000,
    "generator_lr": 1e-4,
    "critic_lr": 1e-4,
}

PAPER_SETTINGS: dict[str, DFGSettings] = {
    "svhn": DFGSettings(),
    "fashion_mnist": DFGSettings(network_lr=1e-5, generator_lr=1e-4, critic_lr=1e-4),
    "stl10": DFGSettings.model_validate(_VGG),
    "cinic10": DFGSettings.model_validate(_VGG | {"network_lr": 2e-5, "iterations": 40_000}),
    "caltech256": DFGSettings.model_validate(_RESNET),
    "food101": DFGSettings.model_validate(_RESNET),
}
"""Appendix A, per target data set."""


@dataclass(frozen=True)
class Recipe:
    """How one method differs from plain training on the target."""

    from_source: bool = True
    """Start from the source network instead of random weights."""
    freeze_early: bool = False
    """Keep everything before the last convolution block fixed (`SplitClassifier.frozen`)."""
    regularised: bool = False
    """Add DELTA's regulariser (α·Ω + β·½‖last layer‖²)."""
    class_weights: Literal["none", "inverse_frequency", "effective_number"] = "none"
    """Weights of the cross-entropy on real data by class."""
    generates: Literal["nothing", "features", "embeddings"] = "nothing"
    """Algorithm 1's features of E, or DIFA+cMWGAN's penultimate features of C."""
    balanced: bool = False
    """Train on as many images of every class as of a majority class: what more data would give, not a competitor."""


RECIPES: dict[DFGMethod, Recipe] = {
    "original": Recipe(from_source=False),
    "fine_tuning": Recipe(freeze_early=True),
    "delta": Recipe(regularised=True),
    "difa_cmwgan": Recipe(generates="embeddings"),
    "dfg": Recipe(regularised=True, generates="features"),
    "whole_transfer": Recipe(),
    "reweighting": Recipe(class_weights="inverse_frequency"),
    "class_balanced": Recipe(class_weights="effective_number"),
    "dfg_without_delta": Recipe(generates="features"),
    "dfg_reweighting": Recipe(regularised=True, class_weights="inverse_frequency", generates="features"),
    "balanced": Recipe(balanced=True),
}
"""The five of Table 2, then our controls. `whole_transfer`, all layers trained from the source and nothing else, is the
reference: each control and DFG without its DELTA term differs from it in one thing."""
