"""Entropy guided adversarial training (EGA), its ablations and plain CAM, as ingredients of the CAM loop."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from pydantic import Field
from torch import Tensor

from repro.data.images import ImageSet
from repro.losses.attack import AttackSettings, pgd_attack
from repro.losses.cam import EntropyForm, cam_entropy
from repro.models.cam_network import CAMNetwork, CAMOutput
from repro.models.dual_batch_norm import has_dual_batch_norm, route_batch_norm, to_dual_batch_norm
from repro.training.batches import Batch, TrainingSettings
from repro.training.cam import Ingredient, Method, StepContext, train_cam
from repro.training.run_store import Run


@dataclass(frozen=True)
class AdversarialExamples(Ingredient):
    """Adds an adversarial view of every image (EGA §3.2); stands last among those that change images."""

    attack: AttackSettings
    batch_norm: Literal["dual", "shared"] = "dual"
    """`dual`: adversarial images have batch norms of their own; `shared`: all go through one, as the released VGG."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Make the batch norms dual, unless shared.

        Raises:
            ValueError: dual ones are asked for and the network has none.
        """
        if self.batch_norm == "dual":
            to_dual_batch_norm(network)
        return network

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """Append the adversarial view."""
        noise = context.random.uniform(*batch.images.shape[1:]) * 2 - 1 if self.attack.random_start else None
        moved = pgd_attack(context.network, batch.images, batch.target, self.attack, context.normalisation, noise)
        return replace(batch, images=torch.cat([batch.images, moved]), views=("clean", "adversarial"))

    def forward_context(self, context: StepContext) -> AbstractContextManager[None]:
        """Clean half through the main batch norms, adversarial half through the auxiliary ones."""
        network = context.network
        return route_batch_norm(network, "mixed") if has_dual_batch_norm(network) else nullcontext()


@dataclass(frozen=True)
class EntropyTerm(Ingredient):
    """Adds λ · entropy of the class activation maps of each view (EGA eq. 8)."""

    form: EntropyForm
    clean_weight: float
    adversarial_weight: float

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """One weighted entropy per view."""
        weights = {"clean": self.clean_weight, "adversarial": self.adversarial_weight}
        return {
            f"entropy_{view}": weights[view] * cam_entropy(maps, batch.labels, self.form)
            for view, maps in batch.by_view(output.maps).items()
        }


class CAMSettings(Method):
    """Plain CAM: the loop without add-ons (the first row of Table 6)."""

    id: ClassVar[str] = "cam"
    label: ClassVar[str] = "CAM"
    source: ClassVar[str] = "Zhou et al., CVPR 2016"

    def ingredients(self) -> list[Ingredient]:
        """None."""
        return []


class AdversarialSettings(Method):
    """CAM on clean and adversarial examples (the second row of Table 6)."""

    id: ClassVar[str] = "cam_adversarial"
    label: ClassVar[str] = "CAM + adversarial examples"
    source: ClassVar[str] = "EGA §3.2"

    attack: AttackSettings = AttackSettings()
    """How adversarial examples are made (eq. 5, §4.3)."""
    batch_norm: Literal["dual", "shared"] = "dual"
    """Whether adversarial images have batch norms of their own (§3.2). Reading `ega.batch_norm.routing`."""

    def ingredients(self) -> list[Ingredient]:
        """The attack."""
        return [AdversarialExamples(self.attack, self.batch_norm)]


class EGASettings(AdversarialSettings):
    """One training of EGA, or of a reading of it; the defaults are the paper's text with the ledger's readings."""

    id: ClassVar[str] = "ega"
    label: ClassVar[str] = "EGA"
    source: ClassVar[str] = "Benassou et al., Neurocomputing 2021"

    entropy: EntropyForm | None = "minmax"
    """Reading of P_CAM in eq. 7; None leaves the term out. Reading `ega.entropy.p_cam`."""
    clean_entropy_weight: float = Field(default=1.0, ge=0)
    """λ of the clean maps in eq. 8; Table 7 chose 1."""
    adversarial_entropy_weight: float = Field(default=0.01, ge=0)
    """λ of the adversarial maps in eq. 8; Table 7 chose 0.01."""

    @classmethod
    def released(
        cls, training: TrainingSettings | None = None, batch_norm: Literal["dual", "shared"] = "shared"
    ) -> "EGASettings":
        """What the authors' public code computes: a normalised-space attack in train mode, an entropy without gradient
        (docs/papers/ega.md §0), and one mean cross-entropy over both halves. Its VGG has no batch norm: `shared`; its
        Inception-v3 has dual ones. The optimiser stays the caller's."""
        return cls(
            attack=AttackSettings.released(),
            batch_norm=batch_norm,
            entropy="released",
            reduction="mean",
            training=training or TrainingSettings(),
        )

    def ingredients(self) -> list[Ingredient]:
        """The attack, then the entropy."""
        parts = super().ingredients()
        if self.entropy is not None:
            parts.append(EntropyTerm(self.entropy, self.clean_entropy_weight, self.adversarial_entropy_weight))
        return parts


def train_ega(
    network: CAMNetwork, data: ImageSet, settings: Method, run: Run, seed: int, fabric: Fabric | None = None
) -> dict[str, Tensor]:
    """Train by EGA or any other method; a step of EGA (eq. 8) = attack, mixed forward, cross-entropies, entropies.

    See `repro.training.cam.train_cam` for what is returned and raised.
    """
    return train_cam(network, data, settings.training, settings.ingredients(), run, seed, settings.reduction, fabric)
