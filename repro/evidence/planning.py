"""What would settle an open question: how many seeds, or images where there is one seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repro.evidence.estimate import Estimate
from repro.evidence.measurements import Measurements, Unit
from repro.evidence.power import seeds_needed
from repro.evidence.published import rounding_interval
from repro.evidence.requirements import Equals, Exceeds, Requirement

FEW_SEEDS = 3
_BEYOND_REACH = 1_000_000


@dataclass(frozen=True)
class Need:
    """`count` units in all; None where the spread is unknown or the effect is too close to the boundary."""

    count: int | None
    unit: Unit

    @property
    def sentence(self) -> str:
        """What to run next."""
        if self.count is None:
            return f"How many {self.unit} would settle it cannot be told: run at least {FEW_SEEDS} seeds first."
        return f"About {self.count:,} {self.unit} in all would settle it (80 % power at the effect seen so far)."


def units_needed(measured: Measurements, requirement: Requirement, quantity: Estimate | None) -> Need:
    """Seeds (or images) at which the interval would clear the boundary if the effect is as seen so far."""
    values, unit = _values(measured, requirement)
    if quantity is None or len(values) < 2 or np.ptp(values) == 0:
        return Need(None, unit)
    distance = _distance(requirement, quantity.value)
    spread = float(np.std(values, ddof=1))
    if distance == 0 or (spread / distance) ** 2 > _BEYOND_REACH:
        return Need(None, unit)
    return Need(seeds_needed(spread, distance), unit)


def _values(measured: Measurements, requirement: Requirement) -> tuple[list[float], Unit]:
    if len(requirement.cells) == 2:
        paired = measured.pairs(*requirement.cells)
        return (list(paired.values), paired.unit) if paired else ([], "seeds")
    return measured.values(requirement.cells[0])


def _distance(requirement: Requirement, value: float) -> float:
    if isinstance(requirement, Exceeds):
        return abs(value - requirement.margin)
    return _distance_to_region(requirement, value)


def _distance_to_region(requirement: Equals, value: float) -> float:
    low, high = rounding_interval(requirement.quoted)
    return min(abs(value - (low - requirement.tolerance)), abs(value - (high + requirement.tolerance)))
