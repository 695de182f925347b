"""Entropy guided adversarial training (EGA) as ingredients of the CAM loop."""

from typing import Literal

from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from repro.data.images import ImageSet
from repro.losses.attack import AttackSettings
from repro.losses.cam import EntropyForm, Reduction
from repro.models.cam_network import CAMNetwork
from repro.training.batches import TrainingSettings
from repro.training.cam import AdversarialExamples, EntropyTerm, Ingredient, train_cam
from repro.training.run_store import Run


class EGASettings(BaseModel):
    """One training of EGA, or of an ablation of it; the defaults are the paper's text with the ledger's readings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    attack: AttackSettings | None = AttackSettings()
    """How adversarial examples are made (eq. 5, §4.3); None trains on clean images only, the CAM baseline."""
    batch_norm: Literal["dual", "shared"] = "dual"
    """Whether adversarial images have batch norms of their own (§3.2). Reading `ega.batch_norm.routing`."""
    entropy: EntropyForm | None = "minmax"
    """Reading of P_CAM in eq. 7; None leaves the term out. Reading `ega.entropy.p_cam`."""
    clean_entropy_weight: float = Field(default=1.0, ge=0)
    """λ of the clean maps in eq. 8; Table 7 chose 1."""
    adversarial_entropy_weight: float = Field(default=0.01, ge=0)
    """λ of the adversarial maps in eq. 8; Table 7 chose 0.01."""
    reduction: Reduction = "sum"
    """How the two cross-entropies are put together; eq. 6 sums. Reading `ega.loss.reduction`."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser, schedule and augmentation, which the paper leaves out for the most part."""

    @classmethod
    def paper(cls, training: TrainingSettings | None = None) -> "EGASettings":
        """The paper's text."""
        return cls(training=training or TrainingSettings())

    @classmethod
    def released(
        cls, training: TrainingSettings | None = None, batch_norm: Literal["dual", "shared"] = "shared"
    ) -> "EGASettings":
        """What the authors' public code computes: a normalised-space attack in train mode and an entropy without
        gradient (digest §0), and one mean cross-entropy over both halves. Its VGG has no batch norm, hence `shared`;
        its Inception-v3 has dual ones. The optimiser stays the caller's."""
        return cls(
            attack=AttackSettings.released(),
            batch_norm=batch_norm,
            entropy="released",
            reduction="mean",
            training=training or TrainingSettings(),
        )

    @classmethod
    def baseline(cls, training: TrainingSettings | None = None) -> "EGASettings":
        """Plain CAM: the same loop with both terms off (the first row of Table 6)."""
        return cls(attack=None, entropy=None, training=training or TrainingSettings())

    def ingredients(self) -> list[Ingredient]:
        """The add-ons of the CAM loop that these settings stand for."""
        chosen: list[Ingredient] = []
        if self.attack is not None:
            chosen.append(AdversarialExamples(self.attack, self.batch_norm))
        if self.entropy is not None:
            chosen.append(EntropyTerm(self.entropy, self.clean_entropy_weight, self.adversarial_entropy_weight))
        return chosen


def train_ega(
    network: CAMNetwork, data: ImageSet, settings: EGASettings, run: Run, seed: int, fabric: Fabric | None = None
) -> dict[str, Tensor]:
    """Train with EGA's objective (eq. 8); one step = attack, mixed forward, cross-entropies and weighted entropies.

    See `repro.training.cam.train_cam` for what is returned and raised.
    """
    return train_cam(network, data, settings.training, settings.ingredients(), run, seed, settings.reduction, fabric)
