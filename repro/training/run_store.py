"""Content-addressed store of trainings: finished runs are loaded, interrupted ones continue, no run is done twice.

A run is keyed by the hash of its whole configuration. Code is deliberately *not* part of the key, since otherwise
every edit would throw away days of training: whoever changes what a training computes raises the `version` of its
configuration instead.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from repro.files import atomic_path, content_hash, file_hash, read_json, remove_temporary_files, write_json
from repro.project import runs_root
from repro.stored_runs import CONFIG, LOCK, SUMMARY

# One training in progress: steps with progress, checkpoints and bit-exact resumption.

_CHECKPOINT_KEYS = {"step", "state", "random", "history", "metrics", "wall_seconds"}


@runtime_checkable
class Stateful(Protocol):
    """Anything with a state dict: modules, optimisers, schedulers, gradient scalers."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


Resumable = Stateful | torch.Generator | np.random.Generator


class Diverged(ArithmeticError):
    """The loss became NaN or infinite; the message says at which step and where the batch was kept."""


class CheckpointMismatch(ValueError):
    """A checkpoint is whole but belongs to other networks or optimisers than those being trained."""


class Run:
    """Handed to a training function by `RunStore.run`; owns one folder of the store.

    Attributes:
        metrics: JSON values to be kept with the result (see `report`).
        history: one dict per `log` call.
        writes: False in all but the first process of a training on several devices: it restores and never saves.
    """

    def __init__(self, folder: Path, checkpoint_seconds: float, *, writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.checkpoint_seconds = checkpoint_seconds
        self.metrics: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self._started = time.monotonic()
        self._earlier_seconds = 0.0

    @property
    def wall_seconds(self) -> float:
        """Seconds spent on this run, interruptions left out; monotonic, so a clock set back does no harm."""
        return self._earlier_seconds + time.monotonic() - self._started

    def steps(self, total: int, state: Mapping[str, Resumable], name: str = "train") -> Iterator[int]:
        """Yield the step indices still to do, restoring `state` first and saving it from time to time.

        A checkpoint holds every entry of `state`, the global random states of torch, numpy and Python, and the
        history. Name each loop where a training has several; a loop that was completed is skipped on resumption,
        with its final state restored. `total` = 0 is allowed.
        """
        start = self._restore(name, state)
        saved = time.monotonic()
        quiet = not os.environ.get("REPRO_PROGRESS", "")
        for step in tqdm(range(start, total), initial=start, total=total, desc=name, disable=quiet, mininterval=1):
            yield step
            if time.monotonic() - saved >= self.checkpoint_seconds:
                self._save(name, step + 1, state)
                saved = time.monotonic()
        if start < total:
            self._save(name, total, state)

    def log(self, step: int, **values: float) -> None:
        """Keep numbers of this step; a value that is not finite stops the run.

        Raises:
            Diverged: a value is NaN or infinite.
        """
        numbers = {key: float(value) for key, value in values.items()}
        for key, value in numbers.items():
            if not math.isfinite(value):
                raise Diverged(f"{key} became {value} at step {step}; lower the learning rate or check the data")
        self.history.append({"step": float(step), **numbers})

    def report(self, **values: Any) -> None:
        """Keep JSON values with the result (final accuracies, counts)."""
        self.metrics.update(values)

    def set_state(self, state: str, error: str = "") -> None:
        """Publish `pending | running | done | failed | interrupted` with process, host-neutral, and time."""
        write_json(
            self.folder / "status.json",
            {"state": state, "pid": os.getpid(), "updated": time.time(), "error": error},
        )

    def remove_checkpoints(self) -> None:
        """Delete every checkpoint; called when the result is safely on disk."""
        for path in self.folder.glob("checkpoint-*"):
            path.unlink(missing_ok=True)

    def _checkpoints(self, name: str) -> list[Path]:
        paths = self.folder.glob(f"checkpoint-{name}-*.pt")
        return sorted(paths, key=lambda path: int(path.stem.rsplit("-", 1)[1]))

    def _save(self, name: str, step: int, state: Mapping[str, Resumable]) -> None:
        if not self.writes:
            return
        target = self.folder / f"checkpoint-{name}-{step}.pt"
        content = {
            "step": step,
            "state": {key: _capture(value) for key, value in state.items()},
            "random": _capture_random(),
            "history": self.history,
            "metrics": json.dumps(self.metrics),
            "wall_seconds": self.wall_seconds,
        }
        with atomic_path(target) as temporary:
            torch.save(content, temporary)
        write_json(target.with_suffix(".json"), {"sha256": file_hash(target)})
        # Two generations are kept, so that a damaged newest one costs minutes and not the run.
        for old in self._checkpoints(name)[:-2]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)

    def _restore(self, name: str, state: Mapping[str, Resumable]) -> int:
        for path in reversed(self._checkpoints(name)):
            content = _read_checkpoint(path)
            if content is None:
                continue
            try:
                for key, value in state.items():
                    _apply(value, content["state"][key])
            except (KeyError, ValueError, RuntimeError) as error:
                raise CheckpointMismatch(
                    f"{path.name} in {self.folder} does not fit this training ({error}); if the code has changed, "
                    "raise the configuration's version or delete the run with `repro runs rm`"
                ) from error
            _apply_random(content["random"])
            self.history = content["history"]
            self.metrics = json.loads(content["metrics"])
            self._earlier_seconds = content["wall_seconds"]
            self._started = time.monotonic()
            return int(content["step"])
        return 0


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The content, or None with a message where the file is damaged or is not made of plain tensors and numbers."""
    recorded = read_json(path.with_suffix(".json"))
    if not isinstance(recorded, dict) or recorded.get("sha256") != file_hash(path):
        print(f"checkpoint {path.name} is damaged; trying the one before")
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        print(f"checkpoint {path.name} was refused, nothing in it was executed ({reason}); trying the one before")
        return None
    if not isinstance(content, dict) or _CHECKPOINT_KEYS - content.keys():
        print(f"checkpoint {path.name} was not written by this package; trying the one before")
        return None
    return content


def _capture(value: Resumable) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return json.dumps(value.bit_generator.state)
    return value.state_dict()


def _apply(value: Resumable, saved: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(saved)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = json.loads(saved)
    else:
        value.load_state_dict(saved)


def _capture_random() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 (libraries use it)
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }


def _apply_random(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = saved["python"]
    random.setstate((version, tuple(internal), gauss_next))


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
