"""What a table was predicted to cost before it was run: `reports/<preset>/plan.json`, quoted in its record."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from repro.catalogue import Preset
from repro.files import read_json, write_json
from repro.project import reports_root

FILE_NAME = "plan.json"


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
    return reports_root() / preset / FILE_NAME


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
