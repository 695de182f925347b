"""The ledger of readings: every point the papers leave open or contradict, the options, and the evidence.

Entries live in `readings/*.yaml` (a list per file, any number of files per paper). A test compares every entry with
the typed parameter it controls, so that ledger and code cannot disagree unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Self

import yaml
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from repro.evidence.comparison import Measurements
from repro.evidence.published import CellAddress, SettingValue, StrictModel, TableId
from repro.evidence.record import Record
from repro.evidence.statistics import Estimate

Option = StrictBool | StrictInt | StrictFloat | StrictStr


class Reading(StrictModel):
    """One under-specified or contradicted point.

    `parameter` is the dotted path of the field or argument that chooses among `options` (None where nothing
    is switchable); `default` is what the package does unless told otherwise, `paper` and `released` what
    `reading="paper"` and `reading="released"` choose (`released` is None where no code was released).
    A Python None among the options is written `none`, a tuple as its items: `"120, 84"`.
    """

    id: Annotated[str, Field(pattern=r"^(ega|dfg|scorecampp)\.[a-z0-9_.]+$")]
    parameter: str | None
    question: str
    options: Annotated[dict[Option, str], Field(min_length=2)]
    default: Option
    paper: Option
    released: Option | None
    evidence: str
    tables: Annotated[list[TableId], Field(min_length=1)]

    @model_validator(mode="after")
    def _choices_are_options(self) -> Self:
        known = self.option_names()
        for name, chosen in (("default", self.default), ("paper", self.paper), ("released", self.released)):
            if chosen is not None and option_name(chosen) not in known:
                raise ValueError(f"{self.id}: {name} is {chosen!r}; it must be one of {sorted(known)}")
        return self

    def option_names(self) -> set[str]:
        """Names of the options in the form `option_name` gives."""
        return {option_name(option) for option in self.options}


def option_name(value: object) -> str:
    """One spelling for an option in YAML and in Python: True → "true", 1.0 → "1", None → "none"."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, tuple | list):
        return ", ".join(option_name(item) for item in value)
    return str(value).strip("()[] ")


def parse_readings(text: str, source: str = "ledger") -> list[Reading]:
    """Readings from the YAML text of one ledger file.

    Raises:
        ValueError: if it is not a list, or an entry breaks the format.
    """
    entries = yaml.safe_load(text) or []
    if not isinstance(entries, list):
        raise ValueError(f"{source} must hold a list of readings, got {type(entries).__name__}")
    return [Reading.model_validate(entry) for entry in entries]


@cache
def load_readings() -> list[Reading]:
    """All readings of all files, sorted by file name.

    Raises:
        ValueError: for a broken file or an id given twice.
    """
    folder = files("repro.evidence").joinpath("readings")
    ledgers = [file for file in folder.iterdir() if file.name.endswith(".yaml")] if folder.is_dir() else []
    readings = [
        reading
        for ledger in sorted(ledgers, key=lambda f: f.name)
        for reading in parse_readings(ledger.read_text(encoding="utf-8"), ledger.name)
    ]
    ids = [reading.id for reading in readings]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise ValueError(f"reading ids must occur once in the ledger, given twice: {', '.join(twice)}")
    return readings


def readings_for(table_id: str) -> list[Reading]:
    """The readings that touch this table."""
    return [reading for reading in load_readings() if table_id in reading.tables]


# What a reading changes: rows of a record that name another option, against the option in force.


@dataclass(frozen=True)
class ReadingEffect:
    """One method and metric under two options: `option` minus `baseline`, paired."""

    reading: Reading
    record: Record
    cell: CellAddress
    """The cell under `option`."""
    option: str
    baseline: str
    difference: Estimate

    @property
    def cell_without_axis(self) -> CellAddress:
        """The cell as it is called without the option."""
        axis = self.reading.id.rpartition(".")[2]
        setting = {name: value for name, value in self.cell.setting if name != axis}
        return CellAddress.of(self.cell.table, self.cell.method, self.cell.metric, setting)


def options_run(reading: Reading, records: dict[str, Record]) -> dict[str, list[str]]:
    """Option → ids of the records that had it in force, as the records say."""
    found: dict[str, list[str]] = {}
    for id, record in records.items():
        if reading.id in record.readings:
            found.setdefault(record.readings[reading.id], []).append(id)
    return found


def reading_effects(measured: Measurements) -> list[ReadingEffect]:
    """Every effect the records allow: rows whose setting has an axis named as a reading's last part."""
    return [effect for record in measured.records.values() for effect in _effects_in(record, measured)]


def _effects_in(record: Record, measured: Measurements) -> Iterator[ReadingEffect]:
    if record.preset == "smoke":
        return
    addresses = measured.addresses(record.id)
    axes = {name for address in addresses for name, _ in address.setting}
    for axis in sorted(axes):
        reading = _reading_of(axis, record)
        if reading is None:
            continue
        for address in addresses:
            baseline = _baseline(address, axis, reading, measured)
            pairs = measured.paired(address, baseline) if baseline else None
            if baseline and pairs:
                names = (option_name(dict(address.setting)[axis]), _option_of(baseline, axis, reading, record))
                yield ReadingEffect(reading, record, address, *names, pairs)


def metric_readings(measured: Measurements, table: str) -> list[dict[str, SettingValue]]:
    """Other options of readings about a metric under which a record holds rows, e.g. `{score_space: logit}`."""
    record = measured.records.get(table)
    if record is None:
        return []
    axes = dict.fromkeys(axis for address in measured.addresses(table) for axis in address.setting)
    found = [(name, value, _reading_of(name, record)) for name, value in axes]
    return [{name: value} for name, value, reading in found if reading and ".metric." in reading.id]


def _reading_of(axis: str, record: Record) -> Reading | None:
    """The ledger entry an axis switches; one about the metric goes first, since rows are measurements."""
    candidates = [reading for reading in readings_for(record.id) if reading.id.rpartition(".")[2] == axis]
    return min(candidates, key=lambda r: (".metric." not in r.id, r.id not in record.readings), default=None)


def _baseline(address: CellAddress, axis: str, reading: Reading, measured: Measurements) -> CellAddress | None:
    """The same cell without the axis, or at the default option; None for the baseline itself."""
    setting: dict[str, SettingValue] = dict(address.setting)
    if axis not in setting:
        return None
    without = {name: value for name, value in setting.items() if name != axis}
    plain = CellAddress.of(address.table, address.method, address.metric, without)
    if measured.rows(plain):
        return plain
    default = CellAddress.of(address.table, address.method, address.metric, {**without, axis: str(reading.default)})
    return default if default != address and measured.rows(default) else None


def _option_of(baseline: CellAddress, axis: str, reading: Reading, record: Record) -> str:
    given = dict(baseline.setting).get(axis)
    if given is not None:
        return option_name(given)
    return record.readings.get(reading.id, option_name(reading.default))
