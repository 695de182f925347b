"""Content-addressed store of trainings: finished runs are loaded, interrupted ones continue, no run is done twice.

A run is keyed by the hash of its whole configuration. Code is deliberately *not* part of the key, since otherwise
every edit would throw away days of training: whoever changes what a training computes raises the `version` of its
configuration instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor

from repro.files import atomic_path, content_hash, file_hash, read_json, remove_temporary_files, write_json
from repro.project import runs_root
from repro.stored_runs import CONFIG, LOCK, SUMMARY
from repro.training.run import Run

TENSORS = "result.safetensors"


class RunConfig(BaseModel):
    """Base of every training's full configuration; subclasses set `kind` and add typed fields.

    Everything that changes the result belongs here: settings, seed, and the `manifest` of the data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str] = "run"
    version: int = 1
    """Raised by hand whenever the code computes something else from the same configuration."""

    @property
    def key(self) -> str:
        """Folder of the run below the store's root: `<kind>/<first 16 digits of the hash>`."""
        return f"{self.kind}/{content_hash({'kind': self.kind, **self.model_dump(mode='json')})[:16]}"


@dataclass(frozen=True)
class RunResult:
    """What a finished training leaves behind."""

    key: str
    tensors: dict[str, Tensor]
    """Named arrays, usually a network's state dict; on the CPU."""
    metrics: dict[str, Any]
    """JSON values the training reported through `Run.report`."""
    history: list[dict[str, float]] = field(repr=False)
    """What `Run.log` collected, one entry a call, with its `step`."""
    wall_seconds: float
    """Training time summed over all interruptions."""
    reused: bool
    """True when nothing was trained by this call."""


class RunBusy(RuntimeError):
    """A training on several devices found its run being trained by another process."""


@dataclass(frozen=True)
class RunStore:
    """The folder of runs; safe for several processes: one trains, the others wait and load."""

    root: Path = field(default_factory=runs_root)
    checkpoint_seconds: float = 120.0
    busy_seconds: float = 60.0
    """How long a training on several devices waits for one elsewhere that is about to end."""

    def run(
        self, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Fabric | None = None
    ) -> RunResult:
        """Return the result of `config`, training it with `train` only if no finished run exists.

        All processes of a launched `fabric` call it together. The first decides for all of them whether to train, and
        alone writes; the others resume from the same checkpoints. A finished run whose result is damaged goes on from
        its last checkpoint where that is still there; it was deleted when the result was safe, so as a rule the run
        is trained from the start.

        Raises:
            RunBusy: there are several processes, and the run is being trained by a process outside of them.
            Whatever `train` raises; its checkpoints stay, so that the next call continues from them.
        """
        folder = self.root / config.key
        if fabric is not None and fabric.world_size > 1:
            return self._run_together(folder, config, train, fabric)
        if (done := self._load(folder, config.key)) is not None:
            return done
        with self._locked(folder, config.key):
            if (done := self._load(folder, config.key)) is not None:
                return done
            return self._train(folder, config, train)

    def _run_together(
        self, folder: Path, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Fabric
    ) -> RunResult:
        lock = FileLock(folder / LOCK)
        try:
            # One decision for all: a process that trained while the first waited or loaded would hang in its first
            # exchange of gradients until the backend gives up.
            decision = fabric.broadcast(self._decide(folder, config, lock) if fabric.is_global_zero else "")
            if decision == "busy":
                raise RunBusy(
                    f"run {config.key} is being trained by another process, for which a training on "
                    f"{fabric.world_size} devices does not wait; start it again when that has ended"
                )
            done = self._load(folder, config.key) if decision == "done" else None
            if done is not None:
                return done
            if fabric.is_global_zero:
                return self._train(folder, config, train)
            run = Run(folder, self.checkpoint_seconds, writes=False)
            return RunResult(config.key, train(run), run.metrics, run.history, run.wall_seconds, reused=False)
        finally:
            lock.release()

    def _decide(self, folder: Path, config: RunConfig, lock: FileLock) -> Literal["train", "done", "busy"]:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=self.busy_seconds)
        except Timeout:
            return "busy"
        return "train" if self._load(folder, config.key) is None else "done"

    def finished(self, config: RunConfig) -> RunResult | None:
        """The result of `config` if it was trained already."""
        return self._load(self.root / config.key, config.key)

    def _locked(self, folder: Path, key: str) -> FileLock:
        folder.mkdir(parents=True, exist_ok=True)
        # An operating-system lock: it vanishes with its process, so a killed trainer never leaves a stale one.
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            print(f"run {key} is being trained by another process; waiting for it")
        return lock

    def _train(self, folder: Path, config: RunConfig, train: Callable[[Run], dict[str, Tensor]]) -> RunResult:
        # Under the lock alone: the holder deletes the temporary files of others, which it takes for leftovers.
        remove_temporary_files(folder)
        write_json(folder / CONFIG, {"kind": config.kind, **config.model_dump(mode="json")})
        if (folder / SUMMARY).exists():
            print(f"the result of run {config.key} is damaged; training it again")
            (folder / SUMMARY).unlink()
        run = Run(folder, self.checkpoint_seconds)
        run.set_state("running")
        try:
            _publish(run, train(run))
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            run.set_state("interrupted" if stopped else "failed", error=f"{type(error).__name__}: {error}")
            raise
        run.set_state("done")
        run.remove_checkpoints()
        return RunResult(
            config.key, load_file(folder / TENSORS), run.metrics, run.history, run.wall_seconds, reused=False
        )

    def _load(self, folder: Path, key: str) -> RunResult | None:
        summary, tensors = read_json(folder / SUMMARY), folder / TENSORS
        if not isinstance(summary, dict) or not tensors.exists() or summary.get("sha256") != file_hash(tensors):
            return None
        return RunResult(
            key, load_file(tensors), summary["metrics"], summary["history"], summary["wall_seconds"], reused=True
        )


def _publish(run: Run, tensors: dict[str, Tensor]) -> None:
    """Write the result; the summary comes last, since its presence is what makes a run finished."""
    with atomic_path(run.folder / TENSORS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    summary = {"metrics": run.metrics, "history": run.history, "wall_seconds": run.wall_seconds}
    digest = file_hash(run.folder / TENSORS)
    write_json(run.folder / SUMMARY, summary | {"sha256": digest, "finished": time.time()})
