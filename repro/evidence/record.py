"""The record of one executed notebook: `result.json`, from which every report is made."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from repro.catalogue import TRIALS, Preset, Table
from repro.evidence.provenance import Provenance
from repro.files import canonical_json, content_hash, file_hash, is_locked, read_json, write_json
from repro.parameters import parameters_hash
from repro.project import reports_root

# What a table was predicted to cost before it was run: `reports/<preset>/plan.json`, quoted in its record.

PLAN_FILE = "plan.json"


class Prediction(BaseModel):
    """Cost of one table, from timing a few steps of each of its trainings on the device named."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    parameters_hash: str
    device: str
    seconds: float
    """From the notebook's first cell to its last, with what earlier tables of the plan train left out."""
    low: float
    high: float
    """Interval around `seconds`; what it covers is said by `repro plan`."""
    gpu_hours: float | None
    """None where it was calibrated on a CPU."""
    device_memory_bytes: int | None
    """Highest allocation on the GPU during calibration, None on a CPU."""
    host_memory_bytes: int
    """Highest resident set of the calibrating process so far: an upper bound for one table."""
    disk_bytes: int
    """Results kept, two checkpoints of the largest training, and images cached at the size they are used."""
    notes: tuple[str, ...] = ()


class Plan(BaseModel):
    """Predictions by table id; a table that could not be calibrated has a reason instead."""

    model_config = ConfigDict(extra="forbid")

    preset: Preset
    tables: dict[str, Prediction] = {}
    refused: dict[str, str] = {}

    def save(self) -> Path:
        """Write the plan atomically, keep what an earlier one says of other tables, and return its path."""
        path = plan_path(self.preset)
        earlier = load_plan(self.preset)
        kept = {id: found for id, found in (earlier.tables if earlier else {}).items() if id not in self.refused}
        write_json(path, self.model_copy(update={"tables": kept | self.tables}).model_dump(mode="json"))
        return path


def plan_path(preset: Preset) -> Path:
    """Where the plan of a preset lies."""
    return reports_root() / preset / PLAN_FILE


def load_plan(preset: Preset) -> Plan | None:
    """The plan of a preset; None where there is none or it is damaged: a plan is a convenience, never a condition."""
    try:
        return Plan.model_validate(read_json(plan_path(preset)))
    except ValidationError:
        return None


def prediction_for(id: str, preset: Preset, parameters_hash: str) -> Prediction | None:
    """What was predicted for exactly these parameters."""
    plan = load_plan(preset)
    found = plan.tables.get(id) if plan else None
    return found if found and found.parameters_hash == parameters_hash else None


# State of the latest execution of a notebook, kept beside its report whether or not it left a record.

State = Literal["running", "done", "failed", "interrupted"]
ATTEMPT_FILE = "attempt.json"
ATTEMPT_FOLDER = "attempt"
"""Notebook and page of an execution that runs or has failed, beside those of the last good one."""
_ERROR_LENGTH = 5000
LOCK_NAME = ".lock"
"""Held by the worker as long as it lives; the operating system frees it when the worker is killed."""


class Attempt(BaseModel):
    """Written when a notebook starts and again when it ends."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    state: State
    parameters_hash: str
    started: str
    seconds: float = 0.0
    error: Annotated[str, AfterValidator(lambda text: text[:_ERROR_LENGTH])] = ""

    def save(self, folder: Path) -> None:
        """Write `attempt.json` atomically."""
        write_json(folder / ATTEMPT_FILE, self.model_dump(mode="json"))


def load_attempt(folder: Path) -> Attempt | None:
    """The latest attempt, None where there is no readable one.

    One that says `running` while nobody holds the folder's lock is `interrupted`: its worker was killed.
    """
    try:
        attempt = Attempt.model_validate_json((folder / ATTEMPT_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    if attempt.state == "running" and not is_locked(folder / LOCK_NAME):
        return attempt.model_copy(update={"state": "interrupted", "error": "its process was killed"})
    return attempt


SCHEMA_VERSION: Literal[3] = 3
"""3 ties a record to its content, its figures and its folder, marks trials, and names the images behind the samples."""
RECORD_FILE = "result.json"
NOTEBOOK = "notebook.ipynb"
PAGE = "index.html"
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 8
_MESSAGE_LENGTH = 300

Text = Annotated[str, StringConstraints(max_length=20_000)]
Name = Annotated[str, StringConstraints(max_length=300)]
TableId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9_]+$", max_length=100)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _short(number: int) -> int:
    if abs(number) >= 2**63:
        raise ValueError("whole numbers of a record fit into 64 bits")
    return number


Whole = Annotated[int, AfterValidator(_short)]
Setting = dict[Name, Name | Whole | float]


class InvalidRecord(ValueError):
    """A `result.json` that is absent, unreadable, of another schema, changed, or not where it belongs."""


class Row(BaseModel):
    """One measured number.

    `method`, `metric` and `setting` say which printed cell the number stands for (see `repro.evidence.published`);
    `dataset` and `network` say what was really run.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: Name
    metric: Name
    value: float
    dataset: Name
    network: Name = ""
    seed: Whole | None = None
    setting: Setting = {}
    n: PositiveInt | None = None
    """Number of items (images) behind the value."""
    low: float | None = None
    high: float | None = None
    """95 % interval over the items of this row alone, where it was computed."""
    unit: Name = ""

    @model_validator(mode="after")
    def _inside(self) -> Row:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has two ends")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError("the value lies outside its interval")
        return self

    @property
    def key(self) -> str:
        """What may occur once in a record: everything but the numbers."""
        return canonical_json([self.method, self.metric, self.dataset, self.network, self.seed, self.setting])


class Figure(BaseModel):
    """A picture of the report: a file beside the record, tied to it by its SHA-256."""

    model_config = ConfigDict(extra="forbid")

    file: FileName
    title: Text
    alt: Text
    sha256: Digest


class Record(BaseModel):
    """Everything a report needs about one table under one preset, or under parameters of one's own (a trial)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[3] = SCHEMA_VERSION
    id: TableId
    title: Text
    preset: Preset
    trial: bool = False
    """True where the parameters are not exactly the preset's: shown, but never judged or published."""
    run_id: Name
    """Token of the batch execution, `interactive` where a person ran the notebook."""
    parameters: dict[Name, Any]
    parameters_hash: Digest
    readings: dict[Name, Name] = {}
    """Reading id → option in force (see the ledger)."""
    rows: list[Row]
    samples: dict[Name, list[float]] = {}
    """Values per image behind the rows, keyed `method|metric|seed`, for paired intervals."""
    image_ids: dict[Name, list[Name]] = {}
    """Ids of the evaluated images in order, keyed `data set/split`; empty in records that predate the field."""
    figures: list[Figure] = []
    findings: list[Text] = []
    """Sentences computed from the rows, each with its numbers."""
    deviations: list[Text] = []
    """Sentences: what differs from the paper and why."""
    skipped_images: NonNegativeInt = 0
    predicted: Prediction | None = None
    """What `repro plan` said of these parameters beforehand; the actual cost is in `provenance`."""
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.parameters_hash != parameters_hash(self.parameters):
            raise ValueError("parameters_hash does not belong to the parameters")
        if self.parameters.get("preset", self.preset) != self.preset:
            raise ValueError("its parameters name another preset")
        for what, names in (("row", [r.key for r in self.rows]), ("figure", [f.file for f in self.figures])):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} {twice[0]} occurs twice")
        return self

    @property
    def place(self) -> tuple[str, ...]:
        """The last parts of the folder it belongs into: `trial` for a trial, preset, paper, name."""
        return (*([TRIALS] * self.trial), self.preset, *self.id.split("/"))

    def save(self, folder: Path) -> Path:
        """Write `result.json` with the hash of its content into `folder` atomically and return its path."""
        path = folder / RECORD_FILE
        content = self.model_dump(mode="json")
        write_json(path, content | {"record_hash": content_hash(content)})
        return path


def load_record(folder: Path) -> Record:
    """Read and check `folder/result.json`: strict schema, hash of its content, its place, and its figures.

    Raises:
        InvalidRecord: with the reason in one line.
    """
    record = _read(folder / RECORD_FILE)
    if folder.resolve().parts[-len(record.place) :] != record.place:
        raise InvalidRecord(f"{RECORD_FILE} belongs into {'/'.join(record.place)}")
    for figure in record.figures:
        path = folder / figure.file
        if not path.is_file():
            raise InvalidRecord(f"figures named in the record are missing: {figure.file}")
        if file_hash(path) != figure.sha256:
            raise InvalidRecord(f"figure {figure.file} is not the one of the record")
    return record


def _read(path: Path) -> Record:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidRecord(f"{RECORD_FILE} is larger than {MAX_BYTES // 2**20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise InvalidRecord(f"{RECORD_FILE} is not of schema version {SCHEMA_VERSION}; run the notebook again")
        _check_depth(content)
        stated = content.pop("record_hash", None)
        if stated != content_hash(content):
            raise InvalidRecord(f"{RECORD_FILE} was changed after it was written: its hash is not that of its content")
        return Record.model_validate_json(json.dumps(content), strict=True)
    except FileNotFoundError:
        raise InvalidRecord("no record was written") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        text = f"{RECORD_FILE} does not fit schema {SCHEMA_VERSION}: {place}: {first['msg']}"
        raise InvalidRecord(text[:_MESSAGE_LENGTH]) from None
    except InvalidRecord:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise InvalidRecord(f"{RECORD_FILE} cannot be read: {error}"[:_MESSAGE_LENGTH]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys the last would win silently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _check_depth(value: Any, room: int = MAX_DEPTH) -> None:
    if isinstance(value, dict | list):
        if not room:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, room - 1)


def record_of(table: Table, preset: Preset) -> Record | None:
    """The valid record of a table, None where there is none."""
    try:
        return load_record(table.report(preset))
    except InvalidRecord:
        return None


def records_in(folder: Path) -> dict[str, Record]:
    """Every valid record of a preset's folder (`reports/<preset>`), by table id."""
    return read_records(folder)[0]


def read_records(folder: Path) -> tuple[dict[str, Record], dict[str, str]]:
    """Every valid record of a preset's folder, and what is wrong with every other one, both by table id.

    One bad file is named and left out; it stops nothing.
    """
    records, problems = {}, {}
    for path in sorted(folder.glob(f"*/*/{RECORD_FILE}")):
        id = "/".join(path.parts[-3:-1])
        try:
            records[id] = load_record(path.parent)
        except InvalidRecord as problem:
            problems[id] = str(problem)
    return records, problems
