"""Where a number comes from: code, data, libraries, machine and time, without names of people or hosts."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from repro.catalogue import Table
from repro.project import code_root

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


def device_name() -> str:
    """The accelerator's name, or the processor model with its core count."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {processor_name()}"


def processor_name() -> str:
    """Model of the processor with the number of cores this process may use, e.g. "AMD EPYC, 2 cores"."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def peak_memory() -> int:
    """Highest resident set of this process in bytes."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * (1 if platform.system() == "Darwin" else 1024)


def inputs_hash(table: Table, parameters_hash: str) -> str:
    """Hash of everything in the repository that decides a notebook's numbers.

    Taken over the notebook's cells, its parameters, and the source of every `repro` module it imports, directly or
    through others. `repro.report` is left out: it decides how numbers look, and `repro report` renders them anew. Data
    and library versions are recorded beside it.
    """
    notebook = table.read()
    digest = hashlib.sha256(parameters_hash.encode())
    for cell in notebook.cells:
        digest.update(cell.source.encode() + b"\0")
    for path in sorted(_closure(_imported_modules("\n".join(notebook.code)))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _closure(modules: Iterable[str]) -> set[Path]:
    seen: set[Path] = set()
    waiting = [path for module in modules if (path := _module_file(module))]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += [other for name in _imports_of_file(path) if (other := _module_file(name))]
    return seen


def _module_file(module: str) -> Path | None:
    if module.startswith("repro.report"):
        return None
    base = code_root() / Path(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


@cache
def _imports_of_file(path: Path) -> frozenset[str]:
    return frozenset(_imported_modules(path.read_text(encoding="utf-8")))


def _imported_modules(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("repro")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("repro"):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found
