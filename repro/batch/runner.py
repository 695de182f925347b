"""Runs many notebooks, several at a time; one failing does not stop the others, Ctrl-C stops all of them cleanly."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, Self

import psutil
from rich.console import Console

from repro.catalogue import Preset, Table
from repro.evidence.provenance import inputs_hash
from repro.evidence.record import ATTEMPT_FOLDER, LOCK_NAME, PAGE, InvalidRecord, Record, load_attempt, load_record
from repro.execution import THREADS
from repro.files import content_hash, file_hash, is_locked, read_json, write_changed, write_json
from repro.parameters import is_trial, parameters_hash, preset_values
from repro.project import UserError, code_root, project_root, reports_root


@dataclass(frozen=True)
class Job:
    """One notebook with its checked parameters."""

    table: Table
    parameters: dict[str, Any]
    force: bool = False
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def preset(self) -> Preset:
        """The preset that the parameters name."""
        preset: Preset = self.parameters["preset"]
        return preset

    @cached_property
    def trial(self) -> bool:
        """Whether the parameters are anything but exactly that preset's."""
        return is_trial(self.table, self.parameters)

    @property
    def folder(self) -> Path:
        """Where record, page and executed notebook go."""
        return self.table.report(self.preset, self.trial)

    @property
    def page(self) -> Path:
        """The page of the latest run: of the failed attempt where there is one."""
        failed = self.folder / ATTEMPT_FOLDER / PAGE
        return failed if failed.exists() else self.folder / PAGE

    @property
    def parameters_hash(self) -> str:
        """Hash of the parameters (see `repro.parameters.parameters_hash`)."""
        return parameters_hash(self.parameters)

    def is_current(self) -> bool:
        """True where a valid record of exactly these inputs exists and the latest attempt left it."""
        record, attempt = self.record(), load_attempt(self.folder)
        if record is None or attempt is None or not (self.folder / PAGE).exists():
            return False
        same = record.provenance.inputs_hash == inputs_hash(self.table, self.parameters_hash)
        return same and attempt.state == "done" and attempt.run_id == record.run_id

    def record(self) -> Record | None:
        """The valid record in its folder, None where there is none."""
        try:
            return load_record(self.folder)
        except InvalidRecord:
            return None

    def to_json(self) -> str:
        """Text form for the worker process."""
        values = {"id": self.table.id, "parameters": self.parameters}
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
    return [Job(table, preset_values(table, preset, overrides), force) for table in tables]


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
        self.status = 0
        """128 + signal where one ended the run."""

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run every job and return the outcomes in the order of `jobs`; after a `KeyboardInterrupt` the rest is
        `interrupted`."""
        with ThreadPoolExecutor(self._jobs_at_once) as pool:
            futures = [pool.submit(self._execute, job) for job in jobs]
            try:
                self._report_as_they_come(futures)
            except KeyboardInterrupt as stop:
                self.status = getattr(stop, "status", 130)
                self.stop()
                self._report_as_they_come([future for future in futures if not future.done()])
            return [future.result() for future in futures]

    def stop(self) -> None:
        """End every worker with its kernel; records of notebooks that were not finished do not count."""
        self._stopping = True
        end_process_trees([psutil.Process(process.pid) for process in list(self._processes) if process.poll() is None])

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
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            with (job.folder / LOG_NAME).open("w", encoding="utf-8") as log:
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
        # The worker has judged its own attempt; the one on disk may already be that of another runner.
        if code == 0 and job.record() is not None:
            return Outcome(job, "done", seconds)
        if self._stopping:
            return Outcome(job, "interrupted", seconds)
        attempt = load_attempt(job.folder)
        own = attempt is not None and attempt.run_id == job.run_id
        error = attempt.error if attempt is not None and own else ""
        error = (
            error or f"the worker process ended with status {code}; see {LOG_NAME}{_last_words(job.folder / LOG_NAME)}"
        )
        if attempt is not None and own and attempt.state != "failed":
            with suppress(OSError):  # on a full disk it stays, and reads as interrupted
                attempt.model_copy(update={"state": "failed", "error": error}).save(job.folder)
        return Outcome(job, "failed", seconds, error)


def _last_words(log: Path) -> str:
    """The last line a worker wrote, as `: …`; nothing where it wrote none."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def end_process_trees(roots: Sequence[psutil.Process], patience: float = 3.0) -> None:
    """Terminate processes with their descendants, killing what has not ended after `patience` seconds."""
    family = []
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            family += [*root.children(recursive=True), root]
    for process in roots:  # each ends its own children in order
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=patience)


@contextmanager
def stopping_signals(error: Callable[[int], BaseException]) -> Iterator[None]:
    """TERM, HUP and INT raise `error(number)` in the main thread inside the block, but for those that are ignored.

    A process under `nohup` ignores HUP; it goes on doing so.
    """

    def stop(number: int, frame: object) -> None:
        raise error(number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
               if signal.getsignal(number) is not signal.SIG_IGN]  # fmt: skip
    earlier = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class Stop(KeyboardInterrupt):
    """A signal that ends the batch in order."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


# What `repro run` does around the runner: progress for people, the dashboard, and the exit status.
#
# What makes pages is imported where it is used: its libraries take seconds, and with nothing to do none is needed.

STAMP = ".rendered.json"
"""What `repro report` made last, beside the dashboard: hash of everything it was made from, hash of each page."""


def run_and_report(jobs: Sequence[Job], preset: Preset, jobs_at_once: int, console: Console) -> int:
    """Run `jobs`, rebuild the dashboard, and return the exit status: 0 all good, 1 failures, 128 + signal.

    Raises:
        UserError: the reports folder cannot be written.
    """
    _check_writable(reports_root() / preset)
    dashboard = reports_root() / preset / PAGE
    if _nothing_to_do(jobs, dashboard):
        console.print(f"nothing to do: all {len(jobs)} records are current (use --force to run again)")
        console.print(f"{len(jobs)} of {len(jobs)} records valid; dashboard: {dashboard}", markup=False)
        return 0
    total, counter = len(jobs), 0

    def started(job: Job) -> None:
        waits = ", waits for another process that runs it" if is_locked(job.folder / LOCK_NAME) else ""
        console.print(f"        {job.table.id} …{waits}", markup=False)

    def finished(outcome: Outcome) -> None:
        nonlocal counter
        counter += 1
        line = f"[{counter:2}/{total}] {outcome.job.table.id}: {outcome.state}"
        line += "" if outcome.state in ("unchanged", "interrupted") else f" in {outcome.seconds:.1f} s"
        console.print(line + (f"\n        {outcome.error}" if outcome.error else ""), markup=False)

    runner = Runner(jobs_at_once, started, finished)
    try:
        with stopping_signals(Stop):
            outcomes = runner.run(jobs)
            if not runner.status:  # told to stop, there is no time for pages: the next call makes them
                from repro.report.pages import write_dashboard

                write_dashboard(preset)
                os.utime(dashboard)  # newer than every record, even where its text is the same
    except Stop as stop:
        return stop.status
    _summarise(outcomes, dashboard, console)
    return runner.status or int(not all(outcome.good for outcome in outcomes))


def _summarise(outcomes: Sequence[Outcome], dashboard: Path, console: Console) -> None:
    for outcome in outcomes:
        if not outcome.good:
            console.print(f"{outcome.state}: {outcome.job.table.id}: see {outcome.job.page}", markup=False)
        elif outcome.job.trial:
            console.print(f"a trial, kept apart: {outcome.job.table.id}: see {outcome.job.page}", markup=False)
    good = sum(outcome.good for outcome in outcomes)
    console.print(f"{good} of {len(outcomes)} records valid; dashboard: {dashboard}", markup=False)


def _nothing_to_do(jobs: Sequence[Job], dashboard: Path) -> bool:
    """Whether every record is current and the dashboard is not older than any of the preset."""
    if not jobs or not dashboard.exists() or any(job.force or not job.is_current() for job in jobs):
        return False
    written = dashboard.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written for path in dashboard.parent.glob("*/*/*.json"))


def _check_writable(folder: Path) -> None:
    """Refuse before any notebook starts rather than fail after hours.

    Raises:
        UserError: nothing can be written below `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"a report must fit here")
            probe.flush()
    except OSError as error:
        raise UserError(
            f"reports cannot be written to {folder}: {error.strerror}; free space, change its permissions or set "
            "REPRO_REPORTS to another folder"
        ) from error


def rebuild_report(preset: Preset, data_sets: Callable[[], Sequence[Mapping[str, str]]]) -> list[Path]:
    """Make every page of a preset again from records and notebooks; for quick and paper also RESULTS.md and README.

    Only files that differ are written, all of them or none, and returned. Where nothing it is made from has changed
    since the last time, nothing is even made. `data_sets` gives the rows of `repro data list`.
    """
    stamp = reports_root() / preset / STAMP
    made_from = _inputs_of_report(preset)
    last = read_json(stamp)
    if isinstance(last, dict) and last.get("made_from") == made_from and _hashes(last["pages"]) == last["pages"]:
        return []
    from repro.report.pages import render_all

    texts = render_all(preset, data_sets)
    written = write_changed(texts)
    names = [os.path.relpath(path, project_root()) for path in texts]
    write_json(stamp, {"made_from": made_from, "pages": _hashes(names)})
    return written


def _hashes(names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files named from the project's root; empty for one that is not there."""
    paths = {name: project_root() / name for name in names}
    return {name: file_hash(path) if path.is_file() else "" for name, path in paths.items()}


def _inputs_of_report(preset: Preset) -> str:
    """Hash of all that pages are made from: records, notebooks, parameters, benchmarks, this package, its libraries."""
    root, reports = project_root(), reports_root()
    patterns = {
        code_root() / "repro": ("**/*.py", "**/*.yaml", "**/*.j2", "**/*.css", "**/*.json"),
        root: ("notebooks/*/*.ipynb", "params/**/*.yaml", "benchmarks/results/*.json"),
        reports: (f"{preset}/*/*/*.ipynb", f"{preset}/*/*/{ATTEMPT_FOLDER}/*.ipynb", "[!.]*/*/*/*.json"),
    }
    paths = [path for folder, names in patterns.items() for name in names for path in sorted(folder.glob(name))]
    libraries = [(name, importlib.metadata.version(name)) for name in ("nbconvert", "latex2mathml", "jinja2", "nh3")]
    return content_hash([libraries, [(os.path.relpath(path, root), file_hash(path)) for path in paths]])
