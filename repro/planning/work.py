"""A piece of a table's work, and its calibration."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from repro.evidence.provenance import peak_memory
from repro.planning.cost import Cost, cost_of, total
from repro.planning.sampled_run import Kind, SampledRun, tensor_bytes, uniform
from repro.training.run_store import Run

Clock = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """One training, evaluation or set of explanations."""

    key: str
    """Equal keys are the same work: the run store does it once, whichever table asks first."""
    alike: str
    """Equal names cost the same (another seed, say) and are calibrated once."""
    do: Callable[[Run], Mapping[str, Tensor]]
    """Does it through `run.steps`, as the run store would have it done; returns what is stored."""
    kind: Kind = uniform
    share: float = 1.0
    """Its part of what `do` does, where `do` trains several at once."""
    stored: float = 1.0
    """Factor on the bytes that `do` returns, where it returns one batch of many."""


@dataclass(frozen=True)
class Calibrated:
    """What calibration saw of one work."""

    cost: Cost
    result_bytes: float
    checkpoint_bytes: int
    device_memory_bytes: int | None


def calibrate(work: Work, repeats: int, clock: Clock = time.perf_counter) -> Calibrated:
    """Do a few steps of `work` on the device it would run on and extrapolate to all of them.

    What lies outside the loops (building networks, filter weights of the source) is done and counted in full.

    Raises:
        Whatever the work raises.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        run = SampledRun(Path(folder), work.kind, repeats, clock)
        started = clock()
        result = work.do(run)
        elapsed = clock() - started
    inside = sum(loop.first + sum(map(sum, loop.seconds.values())) for loop in run.loops)
    costs = [cost_of(loop) for loop in run.loops]
    return Calibrated(
        total([Cost(max(0.0, elapsed - inside), 0.0), *costs]).times(work.share),
        tensor_bytes(result) * work.stored * work.share,
        max((loop.checkpoint_bytes for loop in run.loops), default=0),
        torch.cuda.max_memory_allocated() if on_gpu else None,
    )


def host_memory() -> int:
    """Highest resident set of this process so far, in bytes."""
    return peak_memory()
