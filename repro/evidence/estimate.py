"""A number with its interval: the only form in which a measured value reaches a verdict."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that is believed to hold the true one.

    `low` and `high` may be infinite (one seed says nothing about the spread); no field may be NaN.
    `n` counts the independent units behind the interval (seeds or images), `method` names the interval.

    Raises `ValueError` unless `low <= value <= high` (up to rounding) and `n >= 1`.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name} is NaN: an estimate needs numbers; drop or repair the failed runs first")
        if self.n < 1:
            raise ValueError(f"n is {self.n}: an estimate stands on at least one value")
        slack = 1e-9 * max(1.0, abs(self.value))
        if not self.low - slack <= self.value <= self.high + slack:
            raise ValueError(
                f"value {self.value} lies outside its interval [{self.low}, {self.high}]: expected low <= value <= high"
            )

    def contains(self, number: float) -> bool:
        """Whether `number` lies inside the interval, ends included."""
        return self.low <= number <= self.high
