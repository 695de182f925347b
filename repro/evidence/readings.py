"""The ledger of readings: every point the papers leave open or contradict, the options, and the evidence.

Entries live in `readings/*.yaml` (a list per file, any number of files per paper). `drift` compares an entry
with the typed parameter it controls, so that ledger and code cannot disagree unnoticed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from repro.evidence.comparison import Measurements, PairedValues
from repro.evidence.published import CellAddress, SettingValue, StrictModel, TableId
from repro.evidence.record import Record

Option = StrictBool | StrictInt | StrictFloat | StrictStr
_MISSING = object()


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


def drift(reading: Reading) -> list[str]:
    """What the ledger says and the code does not, as sentences; empty if they agree or nothing is switchable.

    A `Literal` or bool parameter must offer exactly the ledger's options; others are held to the default.
    """
    if reading.parameter is None:
        return []
    try:
        annotation, default = parameter_type(reading.parameter)
    except LookupError as error:
        return [f"{reading.id}: {error.args[0]}"]
    problems = []
    choices = _choices(annotation)
    if choices is not None and choices != reading.option_names():
        ours = sorted(reading.option_names())
        problems.append(f"{reading.id}: {reading.parameter} offers {sorted(choices)}, the ledger {ours}")
    if default is not _MISSING and option_name(default) != option_name(reading.default):
        problems.append(
            f"{reading.id}: default of {reading.parameter} is {option_name(default)}, "
            f"the ledger says {option_name(reading.default)}"
        )
    return problems


def unlisted_fields(readings: list[Reading]) -> list[str]:
    """Fields of the ledger's `…Readings` classes without an entry; such a class holds only readings."""
    listed = {reading.parameter for reading in readings if reading.parameter}
    owners = {path.rpartition(".")[0] for path in listed if not _is_absent(path)}
    return sorted(
        f"{owner}.{name}"
        for owner in owners
        if owner.endswith("Readings")
        for name in _parameters(_resolve(owner))
        if f"{owner}.{name}" not in listed
    )


def parameter_type(path: str) -> tuple[Any, object]:
    """Annotation and default of a dotted field, argument or type alias (which has no default).

    Raises:
        LookupError: if nothing lies at the path.
    """
    owner_path, _, name = path.rpartition(".")
    owner = _resolve(owner_path)
    parameters = _parameters(owner)
    if name in parameters:
        return parameters[name]
    alias = getattr(owner, name, None)
    if _choices(alias) is None:
        raise LookupError(f"{path} does not exist; {owner_path} has {', '.join(parameters) or 'no parameters'}")
    return alias, _MISSING


def _is_absent(path: str) -> bool:
    """Whether nothing lies at a path; `drift` says so in words."""
    try:
        parameter_type(path)
    except LookupError:
        return True
    return False


def _resolve(path: str) -> Any:
    """The module, class or function at a dotted path; the longest importable prefix is the module."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            continue
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                raise LookupError(f"{path} does not exist: {found.__name__} has no {attribute}")
            found = getattr(found, attribute)
        return found
    raise LookupError(f"{path} does not exist: no module of that name")


def _parameters(owner: Any) -> Mapping[str, tuple[Any, object]]:
    """Name → (annotation, default) of the fields of a typed record or the arguments of a callable."""
    if inspect.ismodule(owner):
        return {}
    if inspect.isclass(owner) and issubclass(owner, BaseModel):
        hints = get_type_hints(owner)
        fields = owner.model_fields.items()
        return {
            name: (
                hints[name],
                _MISSING if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in fields
        }
    if inspect.isclass(owner) and dataclasses.is_dataclass(owner):
        hints = get_type_hints(owner)
        return {f.name: (hints[f.name], _default_of(f)) for f in dataclasses.fields(owner)}
    function = owner.__init__ if inspect.isclass(owner) else owner
    hints = get_type_hints(function)
    arguments = inspect.signature(function).parameters.values()
    return {a.name: (hints.get(a.name), _MISSING if a.default is a.empty else a.default) for a in arguments}


def _default_of(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return _MISSING if field.default is dataclasses.MISSING else field.default


def _choices(annotation: Any) -> set[str] | None:
    """The finite set of options a type allows, or None if it is not finite."""
    if annotation is bool:
        return {"true", "false"}
    if annotation is type(None):
        return {"none"}
    if get_origin(annotation) is Literal:
        return {option_name(value) for value in get_args(annotation)}
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_choices(part) for part in get_args(annotation)]
        return None if None in parts else set().union(*(part for part in parts if part is not None))
    return None


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
    difference: PairedValues

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
            pairs = measured.pairs(address, baseline) if baseline else None
            if baseline and pairs:
                names = (option_name(dict(address.setting)[axis]), _option_of(baseline, axis, reading, record))
                yield ReadingEffect(reading, record, address, *names, pairs)


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
