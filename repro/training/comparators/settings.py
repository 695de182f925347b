"""What the settings of every comparator have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from repro.losses.cam import Reduction
from repro.training.batches import TrainingSettings
from repro.training.cam import Ingredient
from repro.training.ega import EGASettings


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


# A comparator with EGA's ingredients on top, which no paper has tried.


class WithEGA(BaseModel):
    """A comparator's ingredients, then EGA's: its layers become dual where they hold batch norms, its images are
    attacked as it made them, and its random layers are silent during the attack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Class of `method`, so that two methods with equal fields stay apart in the run store."""
    method: SerializeAsAny[ComparatorSettings]
    ega: EGASettings

    @classmethod
    def of(cls, method: ComparatorSettings) -> "WithEGA":
        """EGA on top of `method`, with its training."""
        return cls(name=type(method).__name__, method=method, ega=EGASettings.paper(method.training))

    @property
    def training(self) -> TrainingSettings:
        """Optimiser, schedule and augmentation."""
        return self.ega.training

    @property
    def reduction(self) -> Reduction:
        """How the cross-entropies of clean and adversarial images are put together."""
        return self.ega.reduction

    def for_classes(self, classes: Sequence[str]) -> "WithEGA":
        """The same for a data set with these classes."""
        return self.model_copy(update={"method": self.method.for_classes(classes)})

    def ingredients(self) -> list[Ingredient]:
        """The comparator's add-ons, then the attack and the entropy."""
        return [*self.method.ingredients(), *self.ega.ingredients()]
