"""What lies in the run store, read without torch: states, sizes, removal and clean-up.

A state is *derived*, never believed: a run that says `running` while nobody holds its lock was interrupted, since
the lock is the operating system's and vanishes with its process. Clocks play no part in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from repro.catalogue import nearest
from repro.files import content_hash, file_hash, is_locked, read_json, remove_temporary_files, write_json
from repro.project import UserError, runs_root

LOCK = "lock"
CONFIG = "config.json"
STATUS = "status.json"
SUMMARY = "result.json"
TENSORS = "result.safetensors"
_CHECKPOINT = re.compile(r"checkpoint-(?P<loop>.+)-(?P<step>\d+)\.pt")
RunState = Literal["pending", "running", "done", "failed", "interrupted"]


class TrainingProvenance(BaseModel):
    """What a training or stored evaluation ran on: it may decide numbers and is not part of the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    code: str
    """Hash of the code the training function reaches (`repro.execution.training_code`)."""
    torch: str
    python: str
    device: str
    """`cpu` or `cuda`."""
    device_name: str
    world_size: int
    """Processes that trained together."""
    threads: int
    precision: str
    """Of float32 matrix products (`torch.get_float32_matmul_precision`); mixed precision is part of the key."""
    tf32: bool
    """Whether convolutions may round to TF32, on GPUs that have it."""
    deterministic: Literal["all", "where possible"]
    """Kernels: all of them deterministic, or, on CUDA, those that have a deterministic form."""
    wall_seconds: float = 0.0
    """Summed over interruptions."""
    changes: list[str] = []
    """What differed between the parts of an interrupted training, where the user chose to go on all the same."""

    def differences(self, other: TrainingProvenance) -> list[str]:
        """Fields, with both values, that keep a training from going on as if it had never been interrupted."""
        passing = {"device_name", "wall_seconds", "changes", "python"}
        mine, theirs = self.model_dump(exclude=passing), other.model_dump(exclude=passing)
        return [f"{name}: {_short(mine[name])} → {_short(theirs[name])}" for name in mine if mine[name] != theirs[name]]


def _short(value: object) -> str:
    return str(value)[:12]


@dataclass(frozen=True)
class StoredRun:
    """One folder of the store."""

    key: str
    """`<kind>/<16 hex digits>`."""
    folder: Path
    state: RunState
    error: str
    """Why it failed, empty otherwise."""
    size: int
    """Bytes on disk."""
    wall_seconds: float
    """Training time of a finished run, 0 for others."""
    checkpoints: tuple[str, ...]
    """File names, in the order of their steps."""

    @property
    def config(self) -> dict[str, Any]:
        """The full configuration whose hash is the key."""
        return read_json(self.folder / CONFIG) or {}


def stored_runs(root: Path | None = None) -> list[StoredRun]:
    """Every run below `root` (default: `runs_root()`), by key."""
    root = root or runs_root()
    folders = sorted({path.parent for name in (CONFIG, LOCK, STATUS) for path in root.glob(f"*/*/{name}")})
    return [_read(root, folder) for folder in folders]


def find_run(key: str, root: Path | None = None) -> StoredRun:
    """The run whose key, or whose key's beginning or hash, is `key`.

    Raises:
        UserError: no run or more than one fits.
    """
    runs = stored_runs(root)
    fitting = [run for run in runs if key and (run.key.startswith(key) or run.key.split("/")[1].startswith(key))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"run '{key}': {len(fitting)} runs begin so; give more of the key")
    raise UserError(f"no run '{key}': {nearest(key, [run.key for run in runs])}")


def write_summary(folder: Path, key: str, content: Mapping[str, Any]) -> None:
    """Make a run finished: its summary, under one checksum with its key and the tensors that lie beside it."""
    # As JSON reads it back, with names that are text, or the checksum would not fit.
    whole = json.loads(json.dumps({"key": key, "tensors": file_hash(folder / TENSORS), **content}))
    write_json(folder / SUMMARY, whole | {"sha256": content_hash(whole)})


def read_summary(folder: Path, key: str, *, tensors: bool = True) -> dict[str, Any] | None:
    """What `write_summary` wrote; None where it is absent, damaged, or of another run.

    Args:
        tensors: read the tensors, too, and compare their checksum; without it they only have to be there.
    """
    summary, path = read_json(folder / SUMMARY), folder / TENSORS
    if not isinstance(summary, dict) or summary.get("key") != key or not path.is_file():
        return None
    if summary.pop("sha256", None) != content_hash(summary):
        return None
    return summary if not tensors or file_hash(path) == summary["tensors"] else None


def training_provenances(keys: Iterable[str], root: Path | None = None) -> dict[str, TrainingProvenance]:
    """On what each of the finished runs `keys` was made; those that are not in the store are left out."""
    found = {key: read_summary((root or runs_root()) / key, key, tensors=False) for key in keys}
    return {key: TrainingProvenance(**summary["provenance"]) for key, summary in found.items() if summary}


def checkpoint_files(folder: Path, loop: str | None = None) -> list[Path]:
    """Checkpoints of a run, or of one of its loops, in the order of their steps."""
    found = [(path, _CHECKPOINT.fullmatch(path.name)) for path in folder.glob("checkpoint-*.pt")]
    steps = {path: int(name["step"]) for path, name in found if name and loop in (None, name["loop"])}
    return sorted(steps, key=lambda path: (steps[path], path.name))


def remove_run(run: StoredRun) -> None:
    """Delete a run with its result.

    Raises:
        UserError: a process is training it at the moment.
    """
    with _held(run) as free:
        if not free:
            raise UserError(f"run {run.key} is being trained by another process; stop that first")
        shutil.rmtree(run.folder)


def collect_garbage(root: Path | None = None) -> int:
    """Free what no run needs any more and return the bytes: files of killed writers, checkpoints of runs whose result
    was read and found whole, and folders without result or checkpoint. Runs in progress are left alone."""
    freed = 0
    for run in stored_runs(root):
        with _held(run) as free:
            if not free:
                continue
            freed += remove_temporary_files(run.folder)
            if run.state == "done" and read_summary(run.folder, run.key) is not None:
                freed += sum(_unlink(path) for path in run.folder.glob("checkpoint-*"))
            elif run.state in ("failed", "interrupted") and not run.checkpoints:
                shutil.rmtree(run.folder)
                freed += run.size
    return freed


@contextmanager
def _held(run: StoredRun) -> Iterator[bool]:
    """Hold the run's lock; False where another process has it."""
    lock = FileLock(run.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(root: Path, folder: Path) -> StoredRun:
    key = folder.relative_to(root).as_posix()
    summary = read_summary(folder, key, tensors=False)
    state, error = _state(folder, summary is not None)
    return StoredRun(
        key=key,
        folder=folder,
        state=state,
        error=error,
        size=sum(_size(path) for path in folder.iterdir()),
        wall_seconds=float(summary["provenance"]["wall_seconds"]) if summary else 0.0,
        checkpoints=tuple(path.name for path in checkpoint_files(folder)),
    )


def _state(folder: Path, finished: bool) -> tuple[RunState, str]:
    if finished:
        return "done", ""
    status = read_json(folder / STATUS)
    said = status.get("state") if isinstance(status, dict) else None
    if said == "running" and is_locked(folder / LOCK):
        return "running", ""
    files = [name for name in (CONFIG, STATUS, SUMMARY) if (folder / name).exists()]
    if damaged := [name for name in files if not isinstance(read_json(folder / name), dict)]:
        return "interrupted", f"damaged: {', '.join(damaged)}"
    if SUMMARY in files:
        return "interrupted", f"damaged: {SUMMARY}" if (folder / TENSORS).exists() else f"{TENSORS} is missing"
    if said in ("running", "done"):
        return "interrupted", "its process ended without a word"
    states: tuple[RunState, ...] = get_args(RunState)
    return next((state for state in states if state == said), "pending"), str((status or {}).get("error", ""))


def _size(path: Path) -> int:
    """Bytes of a file; none where a trainer has just replaced it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unlink(path: Path) -> int:
    size = _size(path)
    path.unlink(missing_ok=True)
    return size
