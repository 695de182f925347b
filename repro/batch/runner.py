"""Runs many notebooks, several at a time; one failing does not stop the others, Ctrl-C stops all of them cleanly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self

import psutil
from rich.console import Console

from repro.catalogue import Preset, Table, all_tables
from repro.evidence.provenance import inputs_hash
from repro.evidence.record import Attempt, load_attempt, record_of
from repro.execution import THREADS
from repro.files import atomic_path
from repro.parameters import parameters_hash, preset_values
from repro.project import UserError, code_root, reports_root

# A notebook with its checked parameters, ready to be executed.


@dataclass(frozen=True)
class Job:
    """One notebook under one preset."""

    table: Table
    preset: Preset
    parameters: dict[str, Any]
    force: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def parameters_hash(self) -> str:
        """Hash of the parameters (see `repro.parameters.parameters_hash`)."""
        return parameters_hash(self.parameters)

    def is_current(self) -> bool:
        """True where a valid record of exactly these inputs exists and the latest attempt left it."""
        folder = self.table.report(self.preset)
        record, attempt = record_of(self.table, self.preset), load_attempt(folder)
        if record is None or attempt is None or not (folder / "index.html").exists():
            return False
        same = record.provenance.inputs_hash == inputs_hash(self.table, self.parameters_hash)
        return same and attempt.state == "done" and attempt.run_id == record.run_id

    def to_json(self) -> str:
        """Text form for the worker process."""
        values = {"id": self.table.id, "preset": self.preset, "parameters": self.parameters}
        return json.dumps(values | {"force": self.force, "run_id": self.run_id})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls(Table(values.pop("id")), **values)


def make_jobs(
    tables: Sequence[Table], preset: Preset, overrides: Mapping[str, Any] | None = None, force: bool = False
) -> list[Job]:
    """Check the parameters of every table before anything starts.

    Overrides must exist in every selected notebook: a value that silently reached only some would mislead.

    Raises:
        UserError: see `repro.parameters.preset_values`.
    """
    return [Job(table, preset, preset_values(table, preset, overrides), force) for table in tables]


LOG_NAME = "run.log"
RUNNER_PID = "REPRO_RUNNER_PID"


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    job: Job
    state: Literal["done", "unchanged", "failed", "interrupted"]
    seconds: float
    error: str = ""

    @property
    def good(self) -> bool:
        """True where a valid record of this job's inputs exists."""
        return self.state in ("done", "unchanged")


class Runner:
    """Executes jobs in worker processes.

    Args:
        jobs_at_once: notebooks running at the same time, one thread each.
        started: called with a job when its process starts.
        finished: called with each outcome as it comes.
    """

    def __init__(
        self,
        jobs_at_once: int,
        started: Callable[[Job], None] = lambda job: None,
        finished: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self._jobs_at_once = jobs_at_once
        self._started = started
        self._finished = finished
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run every job and return the outcomes in the order of `jobs`; after Ctrl-C the rest is `interrupted`."""
        with ThreadPoolExecutor(self._jobs_at_once) as pool:
            futures = [pool.submit(self._execute, job) for job in jobs]
            try:
                self._report_as_they_come(futures)
            except KeyboardInterrupt:
                self.stop()
                self._report_as_they_come([future for future in futures if not future.done()])
            return [future.result() for future in futures]

    def stop(self) -> None:
        """End every worker with its kernel; records of notebooks that were not finished do not count."""
        self._stopping = True
        for process in list(self._processes):
            end_process_tree(process.pid)

    def _report_as_they_come(self, futures: Sequence[Future[Outcome]]) -> None:
        waiting = set(futures)
        while waiting:
            # A short timeout keeps the main thread awake for Ctrl-C.
            finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in finished:
                self._finished(future.result())

    def _execute(self, job: Job) -> Outcome:
        clock = time.monotonic()
        if self._stopping:
            return Outcome(job, "interrupted", 0.0)
        if not job.force and job.is_current():
            return Outcome(job, "unchanged", time.monotonic() - clock)
        self._started(job)
        folder = job.table.report(job.preset)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / LOG_NAME).open("w", encoding="utf-8") as log:
                code = self._run_worker(job, log)
        except OSError as error:
            return Outcome(job, "failed", time.monotonic() - clock, f"{type(error).__name__}: {error}")
        return self._judge(job, code, time.monotonic() - clock)

    def _run_worker(self, job: Job, log: IO[str]) -> int:
        paths = [str(code_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(THREADS),
            "REPRO_RUN_ID": job.run_id,
            RUNNER_PID: str(os.getpid()),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        # A session of its own, so that Ctrl-C reaches the runner alone and it decides the order of ending.
        process = subprocess.Popen(
            [sys.executable, "-m", "repro.batch.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=code_root(),
            start_new_session=True,
        )
        self._processes.add(process)
        try:
            process.communicate(job.to_json())
        finally:
            self._processes.discard(process)
        return process.returncode

    def _judge(self, job: Job, code: int, seconds: float) -> Outcome:
        folder = job.table.report(job.preset)
        attempt = load_attempt(folder)
        record = record_of(job.table, job.preset)
        # The worker has judged its own attempt; the one on disk may already be that of another runner.
        if code == 0 and record is not None:
            return Outcome(job, "done", seconds)
        if self._stopping:
            _close_attempt(job, attempt, "interrupted", "stopped by the user")
            return Outcome(job, "interrupted", seconds)
        error = attempt.error if attempt and attempt.run_id == job.run_id and attempt.error else ""
        error = error or f"the worker process ended with status {code}; see {LOG_NAME}{_last_words(folder / LOG_NAME)}"
        _close_attempt(job, attempt, "failed", error)
        return Outcome(job, "failed", seconds, error)


def _close_attempt(job: Job, attempt: Attempt | None, state: Literal["failed", "interrupted"], error: str) -> None:
    """Mark an attempt whose worker could not do so itself; on a full disk it stays, and reads as interrupted."""
    if attempt is not None and attempt.run_id == job.run_id and attempt.state in ("running", "interrupted"):
        with suppress(OSError):
            attempt.model_copy(update={"state": state, "error": error}).save(job.table.report(job.preset))


def _last_words(log: Path) -> str:
    """The last line a worker wrote, as `: …`; nothing where it wrote none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def end_process_tree(pid: int, patience: float = 3.0) -> None:
    """Terminate a process and its descendants, killing what has not ended after `patience` seconds."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        _quietly(process.kill)


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except psutil.NoSuchProcess:
        return


# What `repro run` does around the runner: progress for people, the dashboard, and the exit status.
#
# What makes pages is imported where it is used: its libraries take seconds, and with nothing to do none is needed.

INTERRUPTED = 130
DASHBOARD = "index.html"


def run_and_report(jobs: Sequence[Job], preset: Preset, jobs_at_once: int, console: Console) -> int:
    """Run `jobs`, rebuild the dashboard, and return the exit status: 0 all good, 1 failures, 130 interrupted.

    Raises:
        UserError: the reports folder cannot be written.
    """
    _check_writable(reports_root() / preset)
    if _nothing_to_do(jobs, preset):
        page = reports_root() / preset / DASHBOARD
        console.print(f"nothing to do: all {len(jobs)} records are current (use --force to run again)")
        console.print(f"{len(jobs)} of {len(jobs)} records valid; dashboard: {page}", markup=False)
        return 0
    from repro.report.pages import write_dashboard

    total, counter = len(jobs), 0

    def started(job: Job) -> None:
        console.print(f"        {job.table.id} …", markup=False)

    def finished(outcome: Outcome) -> None:
        nonlocal counter
        counter += 1
        line = f"[{counter:2}/{total}] {outcome.job.table.id}: {outcome.state}"
        line += "" if outcome.state in ("unchanged", "interrupted") else f" in {outcome.seconds:.1f} s"
        console.print(line + (f"\n        {outcome.error}" if outcome.error else ""), markup=False)

    outcomes = Runner(jobs_at_once, started, finished).run(jobs)
    dashboard = write_dashboard(preset)
    return _summarise(outcomes, dashboard, console)


def _summarise(outcomes: Sequence[Outcome], dashboard: Path, console: Console) -> int:
    bad = [outcome for outcome in outcomes if not outcome.good]
    for outcome in bad:
        folder = outcome.job.table.report(outcome.job.preset)
        console.print(f"{outcome.state}: {outcome.job.table.id}: see {folder / 'index.html'}", markup=False)
    console.print(f"{len(outcomes) - len(bad)} of {len(outcomes)} records valid; dashboard: {dashboard}", markup=False)
    if any(outcome.state == "interrupted" for outcome in bad):
        return INTERRUPTED
    return 1 if bad else 0


def _nothing_to_do(jobs: Sequence[Job], preset: Preset) -> bool:
    """Whether every record is current and the dashboard is not older than any of the preset."""
    folder = reports_root() / preset
    if not jobs or not (folder / DASHBOARD).exists() or any(job.force or not job.is_current() for job in jobs):
        return False
    written = (folder / DASHBOARD).stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written for path in folder.glob("*/*/*.json"))


def _check_writable(folder: Path) -> None:
    """Refuse before any notebook starts rather than fail after hours.

    Raises:
        UserError: nothing can be written below `folder`.
    """
    try:
        with atomic_path(folder / "write-test") as temporary:
            temporary.write_text("a report must fit here")
        (folder / "write-test").unlink()
    except OSError as error:
        raise UserError(
            f"reports cannot be written to {folder}: {error.strerror}; free space, change its permissions or set "
            "REPRO_REPORTS to another folder"
        ) from error


def rebuild_report(preset: Preset) -> Path:
    """Export every executed notebook again, dashboard, `RESULTS.md`. Returns the dashboard's path."""
    from repro.report.pages import write_dashboard
    from repro.report.readme import write_results

    for table in all_tables():
        rebuild_page(table, preset)
    if preset != "smoke":
        write_results()
    return write_dashboard(preset)


def rebuild_page(table: Table, preset: Preset) -> None:
    """Export one executed notebook again, with its error where it failed; nothing where there is none."""
    from repro.report.html import export_notebook

    folder = table.report(preset)
    if (folder / "notebook.ipynb").exists():
        attempt = load_attempt(folder)
        error = attempt.error if attempt and attempt.state != "done" else ""
        export_notebook(folder / "notebook.ipynb", folder / "index.html", table.title, error)
