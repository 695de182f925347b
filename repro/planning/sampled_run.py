"""A training that does a few of its steps, timed: the calibration behind `repro plan`."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repro.training.run_store import Run

Kind = Callable[[int], Hashable]


def uniform(step: int) -> Hashable:
    """For loops whose steps all cost the same."""
    return "step"


@dataclass
class Loop:
    """One loop of a training: how many steps of each kind it has, and how long those that were done took."""

    name: str
    counts: Counter[Hashable]
    """Steps of the whole training by kind."""
    first: float
    """Seconds of the first step, which warms caches up and is counted once."""
    seconds: dict[Hashable, list[float]] = field(default_factory=dict)
    """Durations of the steps done after the first, by kind."""
    checkpoint_bytes: int = 0


class SampledRun(Run):
    """Yields the first step, then `repeats` steps of every kind, spread over the whole loop; writes nothing.

    Steps of a training may be done in any order, since batches and draws follow from their index alone.

    Args:
        folder: scratch folder, for what a diverging training leaves behind.
        kind: which steps cost the same; a step that evaluates, say, is another kind.
        repeats: steps done of each kind.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self, folder: Path, kind: Kind = uniform, repeats: int = 3, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(folder, math.inf, writes=False)
        self.loops: list[Loop] = []
        self._kind, self._repeats, self._clock = kind, repeats, clock

    def steps(self, total: int, state: Mapping[str, Any], name: str = "train") -> Iterator[int]:
        """See `Run.steps`; yields a sample of the indices."""
        if not total:
            return
        places: dict[Hashable, list[int]] = {}
        for step in range(total):
            places.setdefault(self._kind(step), []).append(step)
        yield from self._first(Loop(name, Counter({kind: len(found) for kind, found in places.items()}), 0.0))
        loop = self.loops[-1]
        for kind, found in places.items():
            left = [step for step in found if step]
            stride = max(1, len(left) // self._repeats)
            for step in left[stride - 1 :: stride][: self._repeats]:
                started = self._now()
                yield step
                loop.seconds.setdefault(kind, []).append(self._now() - started)
        loop.checkpoint_bytes = sum(tensor_bytes(_content(value)) for value in state.values())

    def _first(self, loop: Loop) -> Iterator[int]:
        started = self._now()
        yield 0
        loop.first = self._now() - started
        loop.counts[self._kind(0)] -= 1
        self.loops.append(loop)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._clock()


def _content(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else None


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested mappings and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(tensor_bytes(item) for item in value)
    return 0
