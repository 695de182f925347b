"""A run store that does a few steps of every training and notes what all of them would cost: behind `repro plan`."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from scipy import stats
from torch import Tensor

from repro.execution import reproducible
from repro.files import content_hash
from repro.training.dfg_settings import DFGSettings
from repro.training.run_store import Run, RunConfig, RunResult, RunStore


def clock() -> float:
    """Seconds: on a GPU those that pass, on a CPU those this process computes, so that others' load does not count."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Cost:
    """Seconds, how far off their mean may be (half width of the t interval), and bytes that are stored."""

    seconds: float = 0.0
    half_width: float = 0.0
    stored: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Errors add up rather than in quadrature: a machine that is slow is slow throughout."""
        return Cost(self.seconds + other.seconds, self.half_width + other.half_width, self.stored + other.stored)

    def times(self, factor: float) -> Cost:
        """The same `factor` times; a negative factor takes it away and keeps its error."""
        return Cost(self.seconds * factor, self.half_width * abs(factor), self.stored * factor)


@dataclass
class Loop:
    """How many steps of each kind a loop has, and how long those took that were done."""

    counts: Counter[Hashable]
    first: float = 0.0
    """Of the first step, which warms caches up and is counted once."""
    seconds: dict[Hashable, list[float]] = field(default_factory=dict)
    """Of those done after the first, which has kind `kind(0)` and is no longer among `counts`."""
    checkpoint_bytes: int = 0

    @property
    def cost(self) -> Cost:
        """A kind with a single timing takes the largest relative error of the other kinds, or its whole mean."""
        errors = {kind: _relative_error(values) for kind, values in self.seconds.items() if len(values) > 1}
        whole = Cost(self.first)
        for kind, values in self.seconds.items():
            seconds = self.counts[kind] * sum(values) / len(values)
            whole += Cost(seconds, seconds * errors.get(kind, max(errors.values(), default=1.0)))
        return whole


def _relative_error(values: Sequence[float]) -> float:
    n, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n) / mean if mean else 0.0


class SampledRun(Run):
    """Yields the first step, then `repeats` steps of the commonest kind and one of every other; writes nothing.

    Steps may be done in any order, since batches and draws follow from their index alone.
    """

    def __init__(self, folder: Path, kind: Callable[[int], Hashable], repeats: int, clock: Callable[[], float]) -> None:
        super().__init__(folder, math.inf, writes=False)
        self.loops: list[Loop] = []
        self._kind, self._repeats, self._clock = kind, repeats, clock

    def steps(self, total: int, state: Mapping[str, Any], name: str = "train") -> Iterator[int]:
        """See `Run.steps`; yields a sample of the indices."""
        if not total:
            return
        started = self._clock()
        yield 0
        later: dict[Hashable, list[int]] = {}
        for step in range(1, total):
            later.setdefault(self._kind(step), []).append(step)
        loop = Loop(Counter({kind: len(found) for kind, found in later.items()}), self._clock() - started)
        self.loops.append(loop)
        for kind, found in later.items():
            repeats = self._repeats if len(found) == max(map(len, later.values())) else 1
            stride = max(1, len(found) // repeats)
            for step in found[stride - 1 :: stride][:repeats]:
                started = self._clock()
                yield step
                loop.seconds.setdefault(kind, []).append(self._clock() - started)
        modules = [value.state_dict() for value in state.values() if hasattr(value, "state_dict")]
        loop.checkpoint_bytes = _bytes(modules)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, items))


def kind_of_steps(config: RunConfig) -> Callable[[int], Hashable]:
    """Which steps of a run cost the same: DFG's cycles differ where they evaluate or update filter weights."""
    own = getattr(config, "settings", None)
    if not isinstance(own, DFGSettings):
        return lambda step: "step"
    return lambda cycle: (own.evaluate_after(cycle), (cycle + 1) * own.cycle % own.filter_weights_every == 0)


@dataclass(frozen=True)
class Sample:
    """What a few steps showed of one training or evaluation."""

    config: RunConfig
    cost: Cost
    loops: list[Loop]
    result: RunResult


@dataclass(frozen=True)
class SamplingStore(RunStore):
    """A run store that does a few steps of every kind and keeps what they showed, in memory.

    Runs that differ in seed, data or the value of a real-valued setting cost the same and are sampled once.
    """

    repeats: int = 2
    clock: Callable[[], float] = clock
    alike: dict[str, Sample] = field(default_factory=dict)
    """By what decides their cost; shared by all stores of a plan."""
    runs: dict[str, Sample] = field(default_factory=dict)
    """By key, in the order in which they were asked for first."""

    def run(
        self, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Fabric | None = None
    ) -> RunResult:
        """Sample `train`, or take what is alike."""
        if config.key not in self.runs:
            group = content_hash([config.kind, self._what_costs(config.model_dump(mode="json"))])
            if group not in self.alike:
                self.alike[group] = self._sample(config, train)
            found = self.alike[group]
            self.runs[config.key] = Sample(config, found.cost, found.loops, found.result)
        found = self.runs[config.key]
        return RunResult(config.key, found.result.tensors, found.result.metrics, found.result.history, 0.0, reused=True)

    def finished(self, config: RunConfig) -> RunResult | None:
        """What `run` returned."""
        return self.runs[config.key].result if config.key in self.runs else None

    def _sample(self, config: RunConfig, train: Callable[[Run], dict[str, Tensor]]) -> Sample:
        with tempfile.TemporaryDirectory() as folder, reproducible():
            run = SampledRun(Path(folder), kind_of_steps(config), self.repeats, self.clock)
            started = self.clock()
            tensors = {name: value.detach().cpu() for name, value in train(run).items()}
            elapsed = self.clock() - started
        inside = sum(loop.first + sum(map(sum, loop.seconds.values())) for loop in run.loops)
        cost = sum((loop.cost for loop in run.loops), Cost(max(0.0, elapsed - inside), stored=_bytes(tensors)))
        return Sample(
            config, cost, run.loops, RunResult(config.key, tensors, run.metrics, run.history, 0.0, reused=False)
        )

    def _what_costs(self, value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            free = {"seed", "subset_seed", "repeat", "data", "train", "test", "dataset", "figure"}
            return {key: self._what_costs(item, key) for key, item in value.items() if key not in free}
        if isinstance(value, list | tuple):  # of classes and methods the number counts
            return len(value) if name in ("majority", "methods") else [self._what_costs(item) for item in value]
        if isinstance(value, str) and value in self.runs:  # the key of another run
            return self._what_costs(self.runs[value].config.model_dump(mode="json"))
        return bool(value) if isinstance(value, float) else value
