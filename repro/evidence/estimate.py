"""What a table cell is called and what is known about its value: the words claims and verdicts share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

SettingValue = str | int | float | bool


@dataclass(frozen=True, order=True)
class CellAddress:
    """One cell of one table: (table, method, metric, setting).

    `setting` holds the axes that vary inside the table, sorted by name, so that equal cells are equal keys.
    """

    table: str
    method: str
    metric: str
    setting: tuple[tuple[str, SettingValue], ...] = ()

    @classmethod
    def of(
        cls, table: str, method: str, metric: str, setting: Mapping[str, SettingValue] | None = None
    ) -> Self:
        """Build an address from a mapping of the varying axes."""
        return cls(table, method, metric, tuple(sorted((setting or {}).items())))

    def __str__(self) -> str:
        axes = "".join(f", {name}={value}" for name, value in self.setting)
        return f"{self.table}[{self.method}, {self.metric}{axes}]"


@dataclass(frozen=True)
class Estimate:
    """A measured or printed quantity with the interval it lies in.

    Args:
        value: point estimate, in `unit`.
        low: lower end of the interval, at most `value`.
        high: upper end of the interval, at least `value`.
        n: independent repetitions behind the interval, or None where the source does not say.
        unit: unit of all three numbers ("%", "logit", "images", "" for a pure number).

    Raises:
        ValueError: unless low <= value <= high (which also refuses NaN).
    """

    value: float
    low: float
    high: float
    n: int | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"Estimate needs low <= value <= high, got {self.low} <= {self.value} <= {self.high}; "
                "pass the interval's ends in this order and leave missing values out"
            )

    def shifted(self, by: float) -> "Estimate":
        """The same estimate moved by `by` units."""
        return Estimate(self.value + by, self.low + by, self.high + by, self.n, self.unit)
