"""A notebook with its checked parameters, ready to be executed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from repro.catalogue import Preset, Table
from repro.evidence.attempt import load_attempt
from repro.evidence.provenance import inputs_hash
from repro.evidence.record import record_of
from repro.parameters import parameters_hash, preset_values


@dataclass(frozen=True)
class Job:
    """One notebook under one preset."""

    table: Table
    preset: Preset
    parameters: dict[str, Any]
    force: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def parameters_hash(self) -> str:
        """Hash of the parameters (see `repro.parameters.parameters_hash`)."""
        return parameters_hash(self.parameters)

    def is_current(self) -> bool:
        """True where a valid record of exactly these inputs exists and the latest attempt left it."""
        folder = self.table.report(self.preset)
        record, attempt = record_of(self.table, self.preset), load_attempt(folder)
        if record is None or attempt is None or not (folder / "index.html").exists():
            return False
        same = record.provenance.inputs_hash == inputs_hash(self.table, self.parameters_hash)
        return same and attempt.state == "done" and attempt.run_id == record.run_id

    def to_json(self) -> str:
        """Text form for the worker process."""
        values = {"id": self.table.id, "preset": self.preset, "parameters": self.parameters}
        return json.dumps(values | {"force": self.force, "run_id": self.run_id})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls(Table(values.pop("id")), **values)


def make_jobs(
    tables: Sequence[Table], preset: Preset, overrides: Mapping[str, Any] | None = None, force: bool = False
) -> list[Job]:
    """Check the parameters of every table before anything starts.

    Overrides must exist in every selected notebook: a value that silently reached only some would mislead.

    Raises:
        UserError: see `repro.parameters.preset_values`.
    """
    return [Job(table, preset, preset_values(table, preset, overrides), force) for table in tables]
