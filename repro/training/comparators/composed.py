"""A comparator with EGA's ingredients on top, which no paper has tried."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, SerializeAsAny

from repro.losses.ega import Reduction
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ega import EGASettings
from repro.training.ingredients import Ingredient
from repro.training.settings import TrainingSettings


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
