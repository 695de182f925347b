"""Content-addressed store of trainings: finished runs are loaded, interrupted ones continue, no run is done twice.

A run is keyed by the hash of its whole configuration. Code is deliberately *not* part of the key, since otherwise
every edit would throw away days of training: whoever changes what a training computes raises the `version` of its
configuration instead. What a training ran on (code, libraries, device, threads) lies beside its result, and an
interrupted one goes on only under the same.
"""

from __future__ import annotations

import json
import math
import os
import platform
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
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from repro.execution import device_name, reproducible, training_code
from repro.files import atomic_path, content_hash, file_hash, read_json, remove_temporary_files, write_json
from repro.project import runs_root
from repro.stored_runs import (
    CONFIG,
    LOCK,
    STATUS,
    SUMMARY,
    TENSORS,
    TrainingProvenance,
    checkpoint_files,
    read_summary,
    write_summary,
)

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

    def __init__(
        self,
        folder: Path,
        checkpoint_seconds: float,
        *,
        writes: bool = True,
        provenance: TrainingProvenance | None = None,
    ) -> None:
        self.folder = folder
        self.writes = writes
        self.provenance = provenance
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
            self.folder / STATUS,
            {"state": state, "pid": os.getpid(), "updated": time.time(), "error": error},
        )

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
        made = self.provenance.model_dump(mode="json") if self.provenance else None
        write_json(target.with_suffix(".json"), {"sha256": file_hash(target), "provenance": made})
        # Two generations are kept, so that a damaged newest one costs minutes and not the run.
        for old in checkpoint_files(self.folder, name)[:-2]:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)

    def _restore(self, name: str, state: Mapping[str, Resumable]) -> int:
        for path in reversed(checkpoint_files(self.folder, name)):
            content = _read_checkpoint(path)
            if content is None:
                continue
            try:
                for key, value in state.items():
                    _apply(value, content["state"][key])
            except (LookupError, TypeError, ValueError, RuntimeError) as error:
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
    except Exception as error:  # a reader of pickles raises whatever damage makes of them
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
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
    for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = saved["python"]
    random.setstate((version, tuple(internal), gauss_next))


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
    continue_changed: bool = field(default_factory=lambda: os.environ.get("REPRO_CONTINUE_CHANGED") == "1")
    """Go on from checkpoints of other code, devices or libraries, and say so in the provenance, instead of starting
    anew; `REPRO_CONTINUE_CHANGED=1` sets it for every notebook and command."""

    def run(
        self, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Fabric | None = None
    ) -> RunResult:
        """Return the result of `config`, training it with `train` only if no finished run exists.

        `train` runs with one thread and deterministic kernels, whatever the caller has set; the caller's settings are
        back afterwards. All processes of a launched `fabric` call it together. The first decides for all of them
        whether to train, and alone writes; the others resume from the same checkpoints. A run whose checkpoints were
        made by other code starts anew (see `continue_changed`). A finished run whose result is damaged goes on from
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
            with reproducible():
                return self._train(folder, config, train, self._provenance(folder, config, train, fabric))

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
            with reproducible():
                if fabric.is_global_zero:
                    provenance = self._provenance(folder, config, train, fabric)
                    fabric.barrier()  # it may have removed checkpoints that the others would resume from
                    return self._train(folder, config, train, provenance)
                fabric.barrier()
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

    def _provenance(
        self, folder: Path, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Fabric | None
    ) -> TrainingProvenance:
        """On what the training is about to run; checkpoints of another execution are deleted, or their use is noted."""
        now = _execution(train, fabric)
        before: dict[str, TrainingProvenance] = {}
        for path in checkpoint_files(folder):
            made = _made_on(path)
            if made is None:
                print(f"checkpoint {path.name} does not say on what it was made; it is not used")
                path.unlink()
            else:
                before[str(made)] = made
        changes = [change for made in before.values() for change in made.changes]
        unlike = [line for made in before.values() for line in made.differences(now)]
        if unlike and not self.continue_changed:
            print(
                f"run {config.key} was interrupted and something has changed since ({'; '.join(unlike)}): trained "
                "again from the start; REPRO_CONTINUE_CHANGED=1 would have gone on"
            )
            _remove_checkpoints(folder)
            return now
        return now.model_copy(update={"changes": list(dict.fromkeys([*changes, *unlike]))})

    def _train(
        self,
        folder: Path,
        config: RunConfig,
        train: Callable[[Run], dict[str, Tensor]],
        provenance: TrainingProvenance,
    ) -> RunResult:
        # Under the lock alone: the holder deletes the temporary files of others, which it takes for leftovers.
        remove_temporary_files(folder)
        write_json(folder / CONFIG, {"kind": config.kind, **config.model_dump(mode="json")})
        if (folder / SUMMARY).exists():
            print(f"the result of run {config.key} is damaged; training it again")
            (folder / SUMMARY).unlink()
        run = Run(folder, self.checkpoint_seconds, provenance=provenance)
        run.set_state("running")
        try:
            _publish(run, config.key, provenance, train(run))
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            run.set_state("interrupted" if stopped else "failed", error=f"{type(error).__name__}: {error}")
            raise
        run.set_state("done")
        _remove_checkpoints(folder)
        tensors = load_file(folder / TENSORS)
        return RunResult(config.key, tensors, run.metrics, run.history, run.wall_seconds, reused=False)

    def _load(self, folder: Path, key: str) -> RunResult | None:
        summary = read_summary(folder, key)
        if summary is None:
            return None
        seconds = summary["provenance"]["wall_seconds"]
        return RunResult(key, load_file(folder / TENSORS), summary["metrics"], summary["history"], seconds, reused=True)


def _execution(train: Callable[[Run], dict[str, Tensor]], fabric: Fabric | None) -> TrainingProvenance:
    return TrainingProvenance(
        code=training_code(train),
        torch=torch.__version__,
        python=platform.python_version(),
        device="cuda" if torch.cuda.is_available() else "cpu",
        device_name=device_name(),
        world_size=1 if fabric is None else fabric.world_size,
        threads=torch.get_num_threads(),
        precision=torch.get_float32_matmul_precision(),
        tf32=torch.backends.cudnn.allow_tf32,
        deterministic="where possible" if torch.is_deterministic_algorithms_warn_only_enabled() else "all",
    )


def _made_on(checkpoint: Path) -> TrainingProvenance | None:
    """On what a checkpoint was made; None where that cannot be read, and the checkpoint is then passed over, too."""
    beside = read_json(checkpoint.with_suffix(".json"))
    try:
        return TrainingProvenance.model_validate(beside.get("provenance") if isinstance(beside, dict) else None)
    except ValidationError:
        return None


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        path.unlink(missing_ok=True)


def _publish(run: Run, key: str, provenance: TrainingProvenance, tensors: dict[str, Tensor]) -> None:
    """Write the result; the summary comes last, since its presence is what makes a run finished."""
    with atomic_path(run.folder / TENSORS) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)
    made = provenance.model_copy(update={"wall_seconds": run.wall_seconds})
    summary = {"metrics": run.metrics, "history": run.history, "provenance": made.model_dump(mode="json")}
    write_summary(run.folder, key, summary | {"finished": time.time()})
