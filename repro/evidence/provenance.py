"""Where a number comes from: code, data, libraries, machine and time, without names of people or hosts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import resource
import subprocess

from pydantic import BaseModel, ConfigDict

from repro.catalogue import Table
from repro.execution import source_hash
from repro.project import code_root
from repro.stored_runs import TrainingProvenance

_LIBRARIES = ("torch", "torchvision", "captum", "torchmetrics", "numpy", "scikit-learn", "papermill", "nbval")


class Provenance(BaseModel):
    """What a reader needs to judge and to repeat a run."""

    model_config = ConfigDict(extra="forbid")

    commit: str | None
    """Git commit, None outside a checkout."""
    dirty: bool | None
    """True where tracked files differed from that commit."""
    inputs_hash: str
    """See `inputs_hash`: another value than today's means that the record is stale."""
    data: dict[str, str] = {}
    """Manifest hash of each data set read."""
    runs: list[str] = []
    """Keys of the trainings in the run store that the numbers rest on."""
    trainings: dict[str, TrainingProvenance] = {}
    """On what each of `runs` was made; empty in records before this field."""
    libraries: dict[str, str]
    python: str
    device: str
    threads: int
    started: str
    """UTC, ISO 8601."""
    wall_seconds: float
    """Of the notebook; what it loaded from the run store was paid for earlier."""
    stored_seconds: float | None = None
    """Of the stored `runs` when they were made, by this notebook (then within `wall_seconds`) or earlier; None where
    it is not known, as in records before this field."""
    peak_memory_bytes: int
    """Resident set of the notebook's process at its highest."""
    peak_device_memory_bytes: int = 0


def git_state() -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the project, (None, None) outside a checkout."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(code_root()), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return commit, None if status is None else bool(status)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide about numbers."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def peak_memory() -> int:
    """Highest resident set of this process in bytes."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if platform.system() == "Darwin" else 1024)


def inputs_hash(table: Table, parameters_hash: str) -> str:
    """Hash of everything in the repository that decides a notebook's numbers.

    Taken over the notebook's cells, its parameters, and the code it reaches (`source_hash`). `repro.report` is left
    out: it decides how numbers look, and `repro report` renders them anew. Data and library versions are recorded
    beside it.
    """
    notebook = table.read()
    digest = hashlib.sha256(parameters_hash.encode())
    for cell in notebook.cells:
        digest.update(cell.source.encode() + b"\0")
    digest.update(source_hash("\n".join(notebook.code), without=["repro.report"]).encode())
    return digest.hexdigest()
