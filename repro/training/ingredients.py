"""Add-ons to the CAM training loop: what a method changes, and nothing else.

A method of weakly supervised localisation is a list of ingredients. Each overrides the hooks it needs; the defaults do
nothing. EGA is `[AdversarialExamples(...), EntropyTerm(...)]`, plain CAM is `[]`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repro.data.normalisation import Normalisation
from repro.losses.attack import AttackSettings, pgd_attack
from repro.losses.entropy import EntropyForm, cam_entropy
from repro.models.cam_network import CAMNetwork, CAMOutput
from repro.models.dual_batch_norm import has_dual_batch_norm, route_batch_norm, to_dual_batch_norm
from repro.training.batches import Batch, StepRandom


@dataclass(frozen=True)
class StepContext:
    """What the hooks of one training step may use."""

    network: CAMNetwork
    """The bare network, outside any distributed wrapper."""
    normalisation: Normalisation
    """How the images of the batch were made from pixels."""
    random: StepRandom
    """The only source of random numbers for hooks."""


@dataclass(frozen=True)
class SeenBatch:
    """What localisation knows of a batch of evaluated images."""

    network: CAMNetwork
    images: Float[Tensor, "n 3 height width"]
    """Normalised."""
    output: CAMOutput
    classes: Int[Tensor, " n"]
    """The classes to localise."""


class Ingredient:
    """Hooks of the training loop and of localisation; every default does nothing."""

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add layers, before the optimiser is built; called once, for training and again when weights are loaded."""
        return network

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """Change images or targets of a step; called in the order of the ingredients."""
        return batch

    def forward_context(self, context: StepContext) -> AbstractContextManager[None]:
        """What must hold during the forward pass of a step."""
        return nullcontext()

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms to add to the cross-entropy, by name."""
        return {}

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"] | None:
        """The maps that boxes are read from, if not the plain class maps; called in evaluation mode."""
        return None


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
