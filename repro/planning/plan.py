"""`repro plan`: what the tables will cost, before anything is spent."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from repro.catalogue import Preset, Table
from repro.evidence.record import Plan, Prediction
from repro.execution import device_name
from repro.parameters import parameters_hash, preset_values
from repro.planning.cost import total
from repro.planning.dfg import dfg_request
from repro.planning.ega import ega_request
from repro.planning.extras import figures_work, rendering_works
from repro.planning.requests import Images, Request
from repro.planning.scorecampp import scorecampp_request
from repro.planning.work import Calibrated, Clock, Work, calibrate, host_memory

REQUESTS: Mapping[str, Callable[[str, Mapping[str, Any]], Request]] = {
    "ega": ega_request,
    "dfg": dfg_request,
    "scorecampp": scorecampp_request,
}
HOUR = 3600.0


class Planner:
    """Calibrates tables one after the other; work that an earlier table does is not counted again.

    Args:
        repeats: timed steps of every kind; two at least, for an interval.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: fewer than two repeats.
    """

    def __init__(self, repeats: int = 4, clock: Clock = time.perf_counter) -> None:
        if repeats < 2:
            raise ValueError(f"repeats={repeats}: an interval needs at least 2 timed steps of every kind")
        self._repeats, self._clock = repeats, clock
        self._done: set[str] = set()
        self._cached: set[Images] = set()
        self._calibrated: dict[str, Calibrated] = {}

    def predict(self, request: Request, digest: str) -> Prediction:
        """Cost of one table's request; `digest` is the hash of its parameters.

        Raises:
            Whatever a work raises, e.g. where it does not fit into memory.
        """
        fresh: list[Work] = []
        for work in request.works:
            if work.key not in self._done and work.key not in {one.key for one in fresh}:
                fresh.append(work)
        found = [self._calibrate(work) for work in fresh]
        cost = total([one.cost for one in found])
        cached = {images: size for images, size in request.cache_bytes.items() if images not in self._cached}
        self._done |= {work.key for work in fresh}
        self._cached |= set(cached)
        on_gpu = torch.cuda.is_available()
        checkpoint = max((one.checkpoint_bytes for one in found), default=0)
        notes = request.all_notes()
        shared = len({work.key for work in request.works}) - len(fresh)
        if shared:
            notes = (*notes, f"{shared} of its trainings or evaluations are done by tables before it")
        return Prediction(
            parameters_hash=digest,
            device=device_name(),
            seconds=cost.seconds,
            low=cost.low,
            high=cost.high,
            gpu_hours=cost.seconds / HOUR if on_gpu else None,
            device_memory_bytes=max((one.device_memory_bytes or 0 for one in found), default=0) if on_gpu else None,
            host_memory_bytes=host_memory(),
            disk_bytes=round(sum(one.result_bytes for one in found)) + 2 * checkpoint + sum(cached.values()),
            notes=notes,
        )

    def _calibrate(self, work: Work) -> Calibrated:
        if work.alike not in self._calibrated:
            self._calibrated[work.alike] = calibrate(work, self._repeats, self._clock)
        return self._calibrated[work.alike]


def make_plan(
    tables: Sequence[Table],
    preset: Preset,
    overrides: Mapping[str, Any],
    repeats: int,
    started: Callable[[Table], None] = lambda table: None,
) -> Plan:
    """Predict every table in order; one that cannot be calibrated gets a reason and does not stop the others.

    Raises:
        UserError: the parameters of a table are not valid.
        ValueError: fewer than two repeats.
    """
    planner, plan = Planner(repeats), Plan(preset=preset)
    checked = [(table, preset_values(table, preset, overrides)) for table in tables]
    for table, values in checked:
        started(table)
        try:
            request = REQUESTS[table.paper](table.id, values)
            request.works += rendering_works(request.images)
            request.works.append(figures_work(table.id, _figures(table)))
            plan.tables[table.id] = planner.predict(request, parameters_hash(values))
        except (ArithmeticError, KeyError, MemoryError, OSError, RuntimeError, ValueError) as error:
            plan.refused[table.id] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return plan


def _figures(table: Table) -> int:
    return len(re.findall(r"experiment\.figure\(", "\n".join(table.read().code)))
