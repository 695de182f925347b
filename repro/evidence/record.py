"""The record of one executed notebook: `result.json`, from which every report is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from repro.catalogue import Preset, Table
from repro.evidence.provenance import Provenance
from repro.files import is_locked, read_json, write_json
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
    error: str = ""

    def save(self, folder: Path) -> None:
        """Write `attempt.json` atomically."""
        write_json(folder / ATTEMPT_FILE, self.model_dump(mode="json"))


def load_attempt(folder: Path) -> Attempt | None:
    """The latest attempt, None where there is no readable one.

    One that says `running` while nobody holds the folder's lock is `interrupted`: its worker was killed.
    """
    try:
        attempt = Attempt.model_validate(json.loads((folder / ATTEMPT_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, ValidationError):
        return None
    if attempt.state == "running" and not is_locked(folder / LOCK_NAME):
        return attempt.model_copy(update={"state": "interrupted", "error": "its process was killed"})
    return attempt


SCHEMA_VERSION: Literal[2] = 2
"""2 added `predicted`; records of version 1 are read as they are."""
RECORD_FILE = "result.json"
Setting = dict[str, str | int | float]


class InvalidRecord(ValueError):
    """A `result.json` that is absent, unreadable, of another schema, or inconsistent with itself."""


class Row(BaseModel):
    """One measured number.

    `method`, `metric` and `setting` say which printed cell the number stands for (see `repro.evidence.published`);
    `dataset` and `network` say what was really run.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    method: str
    metric: str
    value: float
    dataset: str
    network: str = ""
    seed: int | None = None
    setting: Setting = {}
    n: int | None = None
    """Number of items (images) behind the value."""
    low: float | None = None
    high: float | None = None
    """95 % interval over the items of this row alone, where it was computed."""
    unit: str = ""


class Figure(BaseModel):
    """A picture of the report."""

    model_config = ConfigDict(extra="forbid")

    file: str
    title: str
    alt: str


class Record(BaseModel):
    """Everything a report needs about one table under one preset."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    id: str
    title: str
    preset: Preset
    run_id: str
    """Token of the batch execution, `interactive` where a person ran the notebook."""
    parameters: dict[str, Any]
    parameters_hash: str
    readings: dict[str, str] = {}
    """Reading id → option in force (see the ledger)."""
    rows: list[Row]
    samples: dict[str, list[float]] = {}
    """Values per image behind the rows, keyed `method|metric|seed`, for paired intervals."""
    figures: list[Figure] = []
    findings: list[str] = []
    """Sentences computed from the rows, each with its numbers."""
    deviations: list[str] = []
    """Sentences: what differs from the paper and why."""
    skipped_images: int = 0
    predicted: Prediction | None = None
    """What `repro plan` said of these parameters beforehand; the actual cost is in `provenance`."""
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.parameters_hash != parameters_hash(self.parameters):
            raise ValueError("parameters_hash does not belong to the parameters")
        return self

    def save(self, folder: Path) -> Path:
        """Write `result.json` into `folder` atomically and return its path."""
        path = folder / RECORD_FILE
        write_json(path, self.model_dump(mode="json"))
        return path


def load_record(folder: Path) -> Record:
    """Read and check `folder/result.json`.

    Raises:
        InvalidRecord: with the reason in one line.
    """
    path = folder / RECORD_FILE
    try:
        record = Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRecord("no record was written") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRecord(f"{RECORD_FILE} is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRecord(f"{RECORD_FILE} does not fit schema {SCHEMA_VERSION}: {place}: {first['msg']}") from None
    missing = [figure.file for figure in record.figures if not (folder / figure.file).exists()]
    if missing:
        raise InvalidRecord(f"figures named in the record are missing: {', '.join(missing)}")
    return record


def record_of(table: Table, preset: Preset) -> Record | None:
    """The valid record of a table, None where there is none."""
    try:
        return load_record(table.report(preset))
    except InvalidRecord:
        return None


def records_in(folder: Path) -> dict[str, Record]:
    """Every valid record of a preset's folder (`reports/<preset>`), by table id."""
    found = {}
    for path in sorted(folder.glob(f"*/*/{RECORD_FILE}")):
        try:
            record = load_record(path.parent)
        except InvalidRecord:
            continue  # the dashboard shows such a table as failed or not run
        found[record.id] = record
    return found
