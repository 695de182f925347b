"""What the first half hour on a GPU is for, in order of value: `python benchmarks/gpu.py --minutes 25`.

1. Every notebook's smoke run on CUDA and on this machine's CPU, compared metric by metric.
2. Score-CAM and Grad-CAM beside the peers, EGA's step in float32 and bf16, DFG's replicas with CUDA graphs.
3. The campaign's long tables, as far as time goes (they need `REPRO_DATA`; the run store keeps what was trained).

Every step is written to `benchmarks/output/gpu/` as it ends. A second call does what is left: a step that was cut off
by the clock is started again, and what went through the run store continues. `--toy` exercises all of it on a CPU.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from repro.catalogue import all_tables, select
from repro.evidence.record import InvalidRecord, load_record
from repro.files import read_json, write_json
from repro.project import code_root
from repro.report.experiment import main_numbers, pinned_or_own

OUTPUT = code_root() / "benchmarks/output/gpu"
WITHIN = 0.4
"""Share by which a metric's mean magnitude may differ: another device adds in another order, training carries it."""


@dataclass(frozen=True)
class Step:
    """One command, or a function that returns what is to be kept; `minutes` is what must be left to start it."""

    name: str
    command: list[str] | Callable[[], dict[str, str]]
    minutes: float
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return OUTPUT / f"{self.name}.json"

    @property
    def done(self) -> bool:
        found = read_json(self.file)
        return isinstance(found, dict) and found.get("state") == "done"

    def run(self, seconds: float) -> str:
        """Do it within `seconds` and write its outcome; returns `done`, `failed` or `cut off`."""
        clock = time.monotonic()
        kept: dict[str, str] = {}
        if isinstance(self.command, list):
            with (OUTPUT / f"{self.name}.log").open("w") as log:
                state = _execute(self.command, {**os.environ, **self.environment}, log.fileno(), seconds)
        else:
            kept = self.command()
            state = "failed" if any(text.startswith("differs") for text in kept.values()) else "done"
        write_json(self.file, {"state": state, "seconds": round(time.monotonic() - clock, 1), "found": kept})
        return state


def _execute(command: list[str], environment: Mapping[str, str], log: int, seconds: float) -> str:
    process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(environment), cwd=code_root())
    try:
        return "failed" if process.wait(seconds) else "done"
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return "cut off"


def smoke(device: str, ids: list[str], jobs: int) -> Step:
    """All smoke notebooks on one device, with records and trainings of their own."""
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    places = {"REPRO_REPORTS": str(OUTPUT / device), "REPRO_RUNS": str(OUTPUT / f"runs-{device}")}
    command = [sys.executable, "-m", "repro.cli", "run", *ids, "--preset", "smoke", "--jobs", str(jobs)]
    return Step(f"smoke-{device}", command, 2.0, places | hidden)


def compare(ids: list[str]) -> dict[str, str]:
    """`equal`, `within 40 %` or `differs: …` for each table."""
    found = {}
    for table in select(ids) if ids else all_tables():
        try:
            cuda, cpu = (load_record(OUTPUT / device / "smoke" / table.id) for device in ("cuda", "cpu"))
        except InvalidRecord as error:
            found[table.id] = f"differs: {error}"
            continue
        ours, theirs = (main_numbers(record.rows, len(record.figures)) for record in (cuda, cpu))
        agree = pinned_or_own(theirs, ours, WITHIN) == theirs
        found[table.id] = (
            "equal" if ours == theirs else f"within {WITHIN:.0%}" if agree else f"differs: {ours} / {theirs}"
        )
    return found


def steps(toy: bool) -> list[Step]:
    """Everything, in order of value."""
    ids = ["dfg/table1_datasets", "dfg/appendix_architectures"] if toy else []
    jobs = 1 if toy else max(1, (os.cpu_count() or 2) // 2)
    quick = ["--quick"] if toy else []
    device = [] if toy else ["--device", "cuda"]

    def script(name: str, *options: str) -> list[str]:
        return [sys.executable, f"benchmarks/{name}.py", *options, *quick]

    replicas = ["--replicas", "1", "2"] if toy else ["--replicas", "1", "16", "90", "--cycles", "20"]
    run = [sys.executable, "-m", "repro.cli", "run"]
    preset = ["--preset", "smoke" if toy else "quick"]
    return [
        smoke("cuda", ids, jobs),
        smoke("cpu", ids, jobs),
        Step("cuda-against-cpu", lambda: compare(ids), 0.1),
        Step("explain", script("explain", *device), 3),
        Step("ega-step", script("ega_step"), 1),
        Step("ega-step-bf16", script("ega_step", "--precision", "bf16-mixed"), 1),
        Step("replicas", script("replicas", *replicas), 4),
        Step("dfg-table2", [*run, "dfg/table1_datasets" if toy else "dfg/table2_accuracy", *preset], 1),
        Step("ega-table1", [*run, "dfg/table1_datasets" if toy else "ega/table1_cub", *preset], 1),
    ]


def main(
    minutes: Annotated[float, typer.Option(help="nothing is started that cannot begin within this time")] = 25,
    toy: Annotated[bool, typer.Option("--toy", help="toy size, on the CPU")] = False,
    only: Annotated[list[str] | None, typer.Option(help="names of steps")] = None,
) -> None:
    """Do what is not done yet, in order, until the time is over."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    failed = False
    for step in steps(toy):
        left = end - time.monotonic()
        if only and step.name not in only:
            continue
        if step.done:
            state = "done before"
        elif left < 60 * step.minutes:
            state = f"not started: {left / 60:.1f} minutes are left, it wants {step.minutes:g}"
        else:
            state = step.run(left)
        failed |= state == "failed"
        typer.echo(f"{step.name}: {state}")
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)
