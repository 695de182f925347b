"""Executes one notebook in a process of its own: `python -m repro.batch.worker`, with a job as JSON on stdin.

One process per notebook, because parallel kernels of one papermill process race for ports. The Python API of
papermill is used rather than its command, since only there `iopub_timeout` (a chatty cell must not kill a good run)
and the kernel's transport encryption can be set.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from repro.batch.runner import RUNNER_PID, Job
from repro.evidence.record import LOCK_NAME, RECORD_FILE, Attempt, InvalidRecord, State, load_record
from repro.files import remove_temporary_files, write_text
from repro.project import project_root
from repro.report.html import export_notebook


class RunnerGone(RuntimeError):
    """The process that ordered a notebook no longer exists."""


IOPUB_SECONDS = 600
KERNEL_START_SECONDS = 300


def execute(job: Job) -> State:
    """Run the notebook, judge it by its record, and write its HTML; returns the state it ended in.

    Raises:
        RunnerGone: whoever ordered this was killed while another runner had the folder.
    """
    folder = job.table.report(job.preset)
    folder.mkdir(parents=True, exist_ok=True)
    # A second runner on the same folder waits here, then finds the work done.
    with _turn(folder / LOCK_NAME):
        if not job.force and job.is_current():
            return "done"
        remove_temporary_files(folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        attempt = Attempt(run_id=job.run_id, state="running", parameters_hash=job.parameters_hash, started=started)
        attempt.save(folder)
        clock = time.monotonic()
        error = _run_notebook(job) or _record_problem(job)
        state: State = "failed" if error else "done"
        export_notebook(folder / "notebook.ipynb", folder / "index.html", job.table.title, error)
        update = {"state": state, "seconds": time.monotonic() - clock, "error": error}
        attempt.model_copy(update=update).save(folder)
        return state


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the folder's lock; an order whose runner was killed is given up, lest it overwrite a newer one's result."""
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            _check_runner()
            continue
        break
    try:
        _check_runner()
        yield
    finally:
        lock.release()


def _check_runner() -> None:
    runner = os.environ.get(RUNNER_PID)
    if runner is not None and int(runner) != os.getppid():
        raise RunnerGone("the runner that ordered this notebook has ended")


def _run_notebook(job: Job) -> str:
    """Execute with papermill; the error as text, empty on success."""
    folder = job.table.report(job.preset)
    encryption = Config({"KernelManager": {"transport_encryption": "auto"}})
    try:
        papermill.execute_notebook(
            str(job.table.notebook),
            str(folder / "notebook.ipynb"),
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
        _forget_paths(folder / "notebook.ipynb")
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
        record = load_record(job.table.report(job.preset))
    except InvalidRecord as problem:
        return str(problem)
    if record.run_id != job.run_id:
        return f"the notebook ended without writing {RECORD_FILE}; the one present is from an earlier run"
    return ""


def main() -> None:
    """Entry point: 0 where the notebook left a valid record, 1 otherwise."""
    # papermill warns about its own future; nothing a user of this package could act on.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="papermill")
    job = Job.from_json(sys.stdin.read())
    sys.exit(0 if execute(job) == "done" else 1)


if __name__ == "__main__":
    main()
