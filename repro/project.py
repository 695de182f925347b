"""Where things live: the project root and the folders that may be moved by environment variables."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

# The one error class that is shown to people without a traceback.


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, says what was expected and what to do."""


@cache
def code_root() -> Path:
    """The folder this package is imported from (the parent of `repro/`)."""
    return Path(__file__).resolve().parents[1]


def project_root() -> Path:
    """The folder of `notebooks/` and `params/`: `REPRO_PROJECT`, by default the checkout the package lies in."""
    value = os.environ.get("REPRO_PROJECT")
    return Path(value).expanduser().resolve() if value else code_root()


def _folder(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return Path(value).expanduser().resolve() if value else project_root() / default


def data_root() -> Path:
    """Root of the data sets: `REPRO_DATA`, by default `<project>/data`."""
    return _folder("REPRO_DATA", "data")


def reports_root() -> Path:
    """Root of executed notebooks, HTML and records: `REPRO_REPORTS`, by default `<project>/reports`."""
    return _folder("REPRO_REPORTS", "reports")


def runs_root() -> Path:
    """Root of the run store: `REPRO_RUNS`, by default `<project>/runs`."""
    return _folder("REPRO_RUNS", "runs")
