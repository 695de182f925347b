"""Runs many notebooks, several at a time; one failing does not stop the others, Ctrl-C stops all of them cleanly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import psutil

from repro.batch.job import Job
from repro.evidence.attempt import Attempt, load_attempt
from repro.evidence.record import record_of
from repro.project import code_root

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
        jobs_at_once: notebooks running at the same time; the processor's threads are divided among them.
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
        threads = max(1, (os.cpu_count() or 1) // self._jobs_at_once)
        paths = [str(code_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
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
