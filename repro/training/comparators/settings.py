"""What the settings of every comparator have in common."""

from pydantic import BaseModel, ConfigDict

from repro.losses.ega import Reduction
from repro.training.settings import TrainingSettings


class ComparatorSettings(BaseModel):
    """Base of a method's settings; a subclass adds its fields and `ingredients`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reduction: Reduction = "sum"
    """How the cross-entropies of several views are put together; with one view both are the same."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser, schedule and augmentation: those of the notebook, equal for all methods."""
