"""Executes one notebook in a process of its own: `python -m repro.batch.worker`, with a job as JSON on stdin.

One process per notebook, because parallel kernels of one papermill process race for ports. The Python API of
papermill is used rather than its command, since only there `iopub_timeout` (a chatty cell must not kill a good run)
and the kernel's transport encryption can be set.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
import psutil
from filelock import FileLock
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from repro.batch.runner import RUNNER_PID, Job, end_process_trees, stopping_signals
from repro.evidence.record import (
    ATTEMPT_FOLDER,
    LOCK_NAME,
    NOTEBOOK,
    PAGE,
    RECORD_FILE,
    Attempt,
    InvalidRecord,
    State,
    load_attempt,
    load_record,
)
from repro.files import remove_temporary_files, write_text
from repro.project import project_root
from repro.report.pages import write_page

IOPUB_SECONDS = 600
KERNEL_START_SECONDS = 300


class Stopped(BaseException):
    """Told to stop, or the runner that ordered this notebook is gone; `status` is the exit status to leave with."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def execute(job: Job) -> State:
    """Run the notebook, judge it by its record, and write its page; returns the state it ended in.

    Notebook and page are written into the folder `attempt` and come out of it only once the record is valid, so that a
    failure stands beside the last good run instead of replacing it.
    """
    folder, stage = job.folder, job.folder / ATTEMPT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # A second runner on the same folder waits here, then finds the work done.
    with FileLock(folder / LOCK_NAME):
        if not job.force and job.is_current():
            return "done"
        remove_temporary_files(folder)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        attempt = Attempt(run_id=job.run_id, state="running", parameters_hash=job.parameters_hash, started=started)
        attempt.save(folder)
        clock = time.monotonic()
        error = _run_notebook(job, stage / NOTEBOOK) or _record_problem(job)
        write_page(stage, job.table, job.preset, job.trial, error)
        if not error:
            for name in (NOTEBOOK, PAGE):
                (stage / name).replace(folder / name)
            shutil.rmtree(stage)
        state: State = "failed" if error else "done"
        attempt.model_copy(update={"state": state, "seconds": time.monotonic() - clock, "error": error}).save(folder)
        return state


def _run_notebook(job: Job, executed: Path) -> str:
    """Execute with papermill; the error as text, empty on success."""
    encryption = Config({"KernelManager": {"transport_encryption": "auto"}})
    # papermill fills in braces of its paths.
    source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (job.table.notebook, executed))
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters=job.parameters,
            kernel_name="python3",
            cwd=str(project_root()),
            progress_bar=False,
            start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=IOPUB_SECONDS,
            config=encryption,
        )
    except PapermillExecutionError as error:
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except (DeadKernelError, CellTimeoutError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _forget_paths(executed)
    return ""


def _forget_paths(executed: Path) -> None:
    """Remove the absolute paths papermill leaves in the metadata: reports travel to other machines."""
    if executed.exists():
        notebook = nbformat.read(executed, as_version=4)
        for name in ("input_path", "output_path"):
            notebook.metadata.get("papermill", {}).pop(name, None)
        write_text(executed, nbformat.writes(notebook))


def _record_problem(job: Job) -> str:
    """Why the record left behind does not count; a kernel killed by the system leaves none of this attempt."""
    try:
        record = load_record(job.folder)
    except InvalidRecord as problem:
        return str(problem)
    if record.run_id != job.run_id:
        return f"the notebook ended without writing {RECORD_FILE}; the one present is from an earlier run"
    return ""


def _wait(work: Future[State]) -> State:
    """The state `work` ends in; looks every second whether the runner that ordered it still lives.

    Raises:
        Stopped: it does not; nobody would look at the result, and it might replace that of a newer runner.
    """
    runner = os.environ.get(RUNNER_PID)
    while True:
        try:
            return work.result(timeout=1)
        except TimeoutError:
            if runner is not None and int(runner) != os.getppid():
                raise Stopped(1, "the runner that ordered this notebook has ended") from None


def _mark_interrupted(job: Job, reason: str) -> None:
    attempt = load_attempt(job.folder)
    if attempt is not None and attempt.run_id == job.run_id and attempt.state == "running":
        with suppress(OSError):
            attempt.model_copy(update={"state": "interrupted", "error": reason}).save(job.folder)


def main() -> None:
    """Entry point: 0 where the notebook left a valid record, 1 otherwise, 128 + signal where one ended it.

    The notebook runs in a thread: nbclient takes signals over in the main one, and would report a stop as a failure.
    """
    # papermill warns about its own future; nothing a user of this package could act on.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="papermill")
    job = Job.from_json(sys.stdin.read())
    try:
        with stopping_signals(lambda number: Stopped(128 + number, f"stopped by {signal.Signals(number).name}")):
            state = _wait(ThreadPoolExecutor(1).submit(execute, job))
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        end_process_trees(psutil.Process().children())
        _mark_interrupted(job, str(stopped))
        os._exit(stopped.status)  # the thread still waits for its kernel
    sys.exit(0 if state == "done" else 1)


if __name__ == "__main__":
    main()
