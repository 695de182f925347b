"""The batch runner with real kernels: failures are isolated, killed kernels fail, nothing is done twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repro.batch.runner import Outcome, Runner, make_jobs
from repro.catalogue import Table, all_tables
from repro.evidence.record import load_attempt, record_of
from repro.report.pages import write_dashboard

Project = Callable[[str, str], Path]


def run_all(**overrides: object) -> dict[str, Outcome]:
    outcomes = Runner(jobs_at_once=2).run(make_jobs(all_tables(), "smoke", overrides))
    return {outcome.job.table.id: outcome for outcome in outcomes}


def test_one_failure_does_not_stop_the_others(project: Project) -> None:
    project("ega/table1", "value = 1")
    project("ega/table2", "raise ValueError('<script>alert(1)</script> no such bird')")
    project("ega/table3", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    outcomes = run_all()
    assert {id: outcome.state for id, outcome in outcomes.items()} == {
        "ega/table1": "done",
        "ega/table2": "failed",
        "ega/table3": "failed",
    }
    assert "no such bird" in outcomes["ega/table2"].error
    page = (Table("ega/table2").report("smoke") / "index.html").read_text()
    assert "This notebook failed" in page and "<script" not in page and "no such bird" in page
    # a killed kernel leaves a notebook that looks finished; only the record tells
    assert record_of(Table("ega/table3"), "smoke") is None
    dashboard = write_dashboard("smoke").read_text()
    assert "<script" not in dashboard


def test_a_second_run_does_nothing_and_a_changed_parameter_runs_again(project: Project) -> None:
    project("ega/table1", "value = 1")
    project("ega/table2", "value = 1")
    assert {outcome.state for outcome in run_all().values()} == {"done"}
    assert {outcome.state for outcome in run_all().values()} == {"unchanged"}
    project("ega/table2", "value = 2")
    assert [outcome.state for outcome in run_all().values()] == ["unchanged", "done"]
    assert {outcome.state for outcome in run_all(images=5).values()} == {"done"}


def test_a_failed_rerun_keeps_the_record_but_is_failed(project: Project) -> None:
    project("ega/table1", "value = 1")
    run_all()
    project("ega/table1", "raise RuntimeError('later')")
    assert run_all()["ega/table1"].state == "failed"
    attempt = load_attempt(Table("ega/table1").report("smoke"))
    assert attempt is not None and attempt.state == "failed"
    assert record_of(Table("ega/table1"), "smoke") is not None


def obey_interrupts() -> None:
    """A shell makes its background jobs ignore SIGINT; the runner under test must not inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_ends_every_process(project: Project, tmp_path: Path) -> None:
    marker = tmp_path / "kernel.pid"
    project("ega/table1", f"import os, time, pathlib; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\n"
            "time.sleep(600)")  # fmt: skip
    command = [sys.executable, "-m", "repro.cli", "run"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ},
        preexec_fn=obey_interrupts,
    )
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(marker.read_text())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
