"""What the papers state about how a table was made, beside what a run did: `settings/<paper>.yaml`.

Data set and network come from the published tables themselves; everything else a run needs is listed here with
its origin: stated by the paper, inferred (from released code or arithmetic), or our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from repro.catalogue import PAPERS
from repro.evidence.published import CellAddress, PublishedTable, StrictModel, TableId, find_table
from repro.evidence.readings import option_name
from repro.evidence.record import Record, Row
from repro.vocabulary import Paper

Origin = Literal["stated", "inferred", "ours"]
State = Literal["same", "differs", "not recorded"]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr


class StatedSetting(StrictModel):
    """One hyperparameter of the tables `tables` (empty: all of the paper).

    `value` may be a mapping from data set to value. `place` is where the paper states it, or what our choice rests
    on. `parameter` names the notebook parameter that holds a run's value (`schedule.iterations` for an entry of a
    mapping); `absent` says what a record means that leaves it out or null: the paper's value, or nothing. A `decisive`
    setting that differs makes the numbers not comparable with the printed ones.
    """

    name: str
    value: Scalar | dict[str, Scalar]
    origin: Origin
    place: str
    parameter: str | None = None
    absent: Literal["same", "unknown"] = "unknown"
    decisive: bool = False
    tables: list[TableId] = []

    def values_for(self, datasets: Sequence[str]) -> list[Scalar]:
        """The value, or those for some data sets; empty where the paper has none for them."""
        if isinstance(self.value, dict):
            return [self.value[name] for name in datasets if name in self.value]
        return [self.value]

    def value_in(self, record: Record) -> Any:
        """What a record's parameters say, None where they say nothing."""
        found: Any = record.parameters
        for key in (self.parameter or "").split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return found


class PaperSettings(StrictModel):
    """All settings of one paper. `same_as` lists our names for what the paper calls otherwise."""

    paper: Paper
    same_as: dict[str, list[str]] = {}
    settings: list[StatedSetting]

    @model_validator(mode="after")
    def _tables_belong_to_the_paper(self) -> PaperSettings:
        foreign = [table for s in self.settings for table in s.tables if not table.startswith(f"{self.paper}/")]
        if foreign:
            raise ValueError(f"settings of {self.paper} name tables of another paper: {foreign}")
        return self


@dataclass(frozen=True)
class Difference:
    """One way in which a run is not what the paper did."""

    name: str
    run: str
    paper: str


@dataclass(frozen=True)
class SettingComparison:
    """One line of the difference list."""

    name: str
    origin: Origin
    paper: str
    run: str
    place: str
    decisive: bool
    state: State


@cache
def load_settings(paper: Paper) -> PaperSettings:
    """The settings of one paper.

    Raises:
        ValueError: for an unknown paper, or a file that breaks the format (pydantic names the place).
    """
    if paper not in PAPERS:
        raise ValueError(f"paper must be one of {', '.join(PAPERS)}, got {paper!r}")
    text = files("repro.evidence").joinpath("settings", f"{paper}.yaml").read_text(encoding="utf-8")
    return PaperSettings.model_validate(yaml.safe_load(text))


def settings_for(table_id: str) -> list[StatedSetting]:
    """The settings that concern one table, in the order of the file."""
    return [s for s in _paper_settings(table_id).settings if not s.tables or table_id in s.tables]


def expected_source(address: CellAddress) -> tuple[str | None, str | None]:
    """Data set and network the paper gives for a cell; None where it names none."""
    table = find_table(address.table)
    axes, setup = dict(address.setting), table.setup if table else {}
    dataset = axes.get("dataset", setup.get("dataset"))
    network = axes.get("network", setup.get("network"))
    if isinstance(network, Mapping):
        network = network.get(str(dataset))
    return _text(dataset), _text(network)


def compare_settings(table_id: str, record: Record | None) -> list[SettingComparison]:
    """Every setting of a table: the paper's (or our) value beside the one of the record, if there is one."""
    table = find_table(table_id)
    lines = [] if table is None else [_source_line(table, record, axis) for axis in ("dataset", "network")]
    return lines + [_setting_line(table_id, setting, record) for setting in settings_for(table_id)]


def _setting_line(table_id: str, setting: StatedSetting, record: Record | None) -> SettingComparison:
    given = None if record is None else setting.value_in(record)
    datasets = sorted({row.dataset for row in record.rows}) if record else []
    wanted = list(dict.fromkeys(option_name(value) for value in setting.values_for(datasets)))
    paper = ", ".join(wanted) or _mapping_text(setting.value)
    run = "not recorded"
    state: State = "not recorded"
    if given is not None:
        run = option_name(given)
        state = "same" if any(run in _names(table_id, name) for name in wanted) else "differs"
    elif record is not None and setting.absent == "same":
        run, state = paper, "same"
    return SettingComparison(setting.name, setting.origin, paper, run, setting.place, setting.decisive, state)


def decisive_differences(record: Record) -> list[Difference]:
    """Settings other than data set and network whose difference makes a record not comparable.

    Outside the paper preset, a decisive setting that the record does not name counts as different.
    """
    silent = "differs" if record.preset == "paper" else "not recorded"
    lines = [line for line in compare_settings(record.id, record) if line.name not in _SOURCE_NAMES]
    found = [line for line in lines if line.decisive and line.state in ("differs", silent)]
    return [Difference(line.name, line.run, line.paper) for line in found]


def source_differences(address: CellAddress, rows: Sequence[Row], record: Record) -> list[Difference]:
    """How the data set or network behind measured rows differs from that of the printed cell."""
    differences = []
    actual = [sorted({row.dataset for row in rows}), sorted({row.network for row in rows})]
    for name, wanted, found in zip(_SOURCE_NAMES, expected_source(address), actual, strict=True):
        run = ", ".join(found) or "not recorded"
        if wanted is None:
            if record.preset != "paper":
                differences.append(Difference(name, run, "not named"))
        elif not set(found) <= _names(address.table, wanted):
            differences.append(Difference(name, run, wanted))
    return differences


_SOURCE_NAMES = ("data set", "network")


def _paper_settings(table_id: str) -> PaperSettings:
    paper = next((name for name in PAPERS if table_id.startswith(f"{name}/")), None)
    if paper is None:
        raise ValueError(f"no paper has a table {table_id!r}: its id must start with one of {', '.join(PAPERS)}")
    return load_settings(paper)


def _names(table_id: str, name: str) -> set[str]:
    return {name, *_paper_settings(table_id).same_as.get(name, [])}


def _source_line(
    table: PublishedTable, record: Record | None, axis: Literal["dataset", "network"]
) -> SettingComparison:
    values: list[Any] = [setting[axis] for setting in table.settings if axis in setting] or [table.setup.get(axis)]
    if isinstance(values[0], Mapping):
        values = list(values[0].values())
    wanted = list(dict.fromkeys(str(value) for value in values if value is not None))
    run = sorted({row.dataset if axis == "dataset" else row.network for row in record.rows} - {""}) if record else []
    allowed = {name for value in wanted for name in _names(table.id, value)}
    state: State = "not recorded" if not run else "same" if wanted and set(run) <= allowed else "differs"
    return SettingComparison(
        name=_SOURCE_NAMES[axis == "network"],
        origin="stated",
        paper=", ".join(wanted) or "not named",
        run=", ".join(run) or "not recorded",
        place=table.source,
        decisive=True,
        state=state,
    )


def _mapping_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {option_name(item)}" for key, item in value.items())
    return option_name(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
