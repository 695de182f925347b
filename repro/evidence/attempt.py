"""State of the latest execution of a notebook, kept beside its report whether or not it left a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from repro.files import is_locked, write_json

State = Literal["running", "done", "failed", "interrupted"]
FILE_NAME = "attempt.json"
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
        write_json(folder / FILE_NAME, self.model_dump(mode="json"))


def load_attempt(folder: Path) -> Attempt | None:
    """The latest attempt, None where there is no readable one.

    One that says `running` while nobody holds the folder's lock is `interrupted`: its worker was killed.
    """
    try:
        attempt = Attempt.model_validate(json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError, ValidationError):
        return None
    if attempt.state == "running" and not is_locked(folder / LOCK_NAME):
        return attempt.model_copy(update={"state": "interrupted", "error": "its process was killed"})
    return attempt
