"""What the settings of every comparator have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from repro.losses.ega import Reduction
from repro.training.ega import EGASettings
from repro.training.ingredients import Ingredient
from repro.training.settings import TrainingSettings


class ComparatorSettings(BaseModel, ABC):
    """Base of a method's settings; a subclass adds its fields and `ingredients`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduction: Reduction = "sum"
    """How the cross-entropies of several views are put together; with one view both are the same."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser, schedule and augmentation: those of the notebook, equal for all methods."""

    def for_classes(self, classes: Sequence[str]) -> "ComparatorSettings":
        """The settings for a data set with these classes; most are the same on all."""
        return self

    @abstractmethod
    def ingredients(self) -> list[Ingredient]:
        """Add-ons of the CAM loop, in order."""


class BorrowsTraining(ComparatorSettings):
    """Base of methods that train plain CAM and only localise in another way; the network is trained once for all."""

    @property
    def trained_as(self) -> EGASettings:
        """The method whose training is used."""
        return EGASettings.baseline(self.training)
