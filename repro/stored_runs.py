"""What lies in the run store, read without torch: states, sizes, removal and clean-up.

A state is *derived*, never believed: a run that says `running` while nobody holds its lock was interrupted, since
the lock is the operating system's and vanishes with its process. Clocks play no part in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from repro.catalogue import nearest
from repro.files import is_locked, read_json, remove_temporary_files
from repro.project import UserError, runs_root

LOCK = "lock"
CONFIG = "config.json"
STATUS = "status.json"
SUMMARY = "result.json"
RunState = Literal["pending", "running", "done", "failed", "interrupted"]


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


def seconds_of_runs(keys: Iterable[str], root: Path | None = None) -> float | None:
    """Wall seconds that the finished runs `keys` took together, None where one of them is not in the store."""
    total = 0.0
    for key in keys:
        summary = read_json((root or runs_root()) / key / SUMMARY)
        if not isinstance(summary, dict):
            return None
        total += float(summary["wall_seconds"])
    return total


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
    """Free what no run needs any more and return the bytes: files of killed writers, checkpoints of finished runs,
    and folders without result or checkpoint. Runs in progress are left alone, as are all results."""
    freed = 0
    for run in stored_runs(root):
        with _held(run) as free:
            if not free:
                continue
            freed += remove_temporary_files(run.folder)
            if run.state == "done":
                freed += sum(_unlink(path) for path in run.folder.glob("checkpoint-*"))
            elif run.state != "pending" and not run.checkpoints:
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
    summary = read_json(folder / SUMMARY)
    status = read_json(folder / STATUS)
    state, error = _state(folder, summary, status if isinstance(status, dict) else {})
    checkpoints = sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    return StoredRun(
        key=folder.relative_to(root).as_posix(),
        folder=folder,
        state=state,
        error=error,
        size=sum(_size(path) for path in folder.iterdir()),
        wall_seconds=float(summary["wall_seconds"]) if isinstance(summary, dict) else 0.0,
        checkpoints=tuple(path.name for path in checkpoints),
    )


def _state(folder: Path, summary: Any, status: dict[str, Any]) -> tuple[RunState, str]:
    if isinstance(summary, dict):
        return "done", ""
    said = status.get("state")
    if said == "running" and is_locked(folder / LOCK):
        return "running", ""
    if said in ("running", "done"):
        return "interrupted", "its process ended without a word"
    states: tuple[RunState, ...] = get_args(RunState)
    return next((state for state in states if state == said), "pending"), str(status.get("error", ""))


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
