"""The record of one executed notebook: `result.json`, from which every report is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from repro.catalogue import Preset, Table
from repro.evidence.prediction import Prediction
from repro.evidence.provenance import Provenance
from repro.files import write_json
from repro.parameters import parameters_hash

SCHEMA_VERSION: Literal[2] = 2
"""2 added `predicted`; records of version 1 are read as they are."""
FILE_NAME = "result.json"
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
        path = folder / FILE_NAME
        write_json(path, self.model_dump(mode="json"))
        return path


def load_record(folder: Path) -> Record:
    """Read and check `folder/result.json`.

    Raises:
        InvalidRecord: with the reason in one line.
    """
    path = folder / FILE_NAME
    try:
        record = Record.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRecord("no record was written") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidRecord(f"{FILE_NAME} is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRecord(f"{FILE_NAME} does not fit schema {SCHEMA_VERSION}: {place}: {first['msg']}") from None
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
    for path in sorted(folder.glob(f"*/*/{FILE_NAME}")):
        try:
            record = load_record(path.parent)
        except InvalidRecord:
            continue  # the dashboard shows such a table as failed or not run
        found[record.id] = record
    return found
