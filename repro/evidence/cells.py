"""What a table cell is called: the address that published numbers, claims and result rows share."""

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
    def of(cls, table: str, method: str, metric: str, setting: Mapping[str, SettingValue] | None = None) -> Self:
        """Build an address from a mapping of the varying axes."""
        return cls(table, method, metric, tuple(sorted((setting or {}).items())))

    def __str__(self) -> str:
        axes = "".join(f", {name}={value}" for name, value in self.setting)
        return f"{self.table}[{self.method}, {self.metric}{axes}]"
