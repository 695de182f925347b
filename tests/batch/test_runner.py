"""The batch runner with real kernels: failures are isolated, killed kernels fail, nothing is done twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from repro.batch.runner import Outcome, Runner, make_jobs
from repro.catalogue import Table, all_tables
from repro.evidence.record import load_attempt, load_record, record_of
from repro.project import UserError
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
    page = outcomes["ega/table2"].job.page.read_text()
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


def contents(folder: Path) -> dict[str, bytes]:
    """What a reader of a good run sees; the state of the latest attempt stands beside it."""
    kept = ("result.json", "index.html", "notebook.ipynb")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in kept or path.suffix == ".png"}


def test_a_failed_rerun_stands_beside_the_good_one(project: Project) -> None:
    project("ega/table1", "value = 1")
    run_all()
    folder = Table("ega/table1").report("smoke")
    good = contents(folder)
    assert len(good) == 3
    project("ega/table1", "raise RuntimeError('later')")
    outcome = run_all()["ega/table1"]
    assert outcome.state == "failed" and "later" in outcome.job.page.read_text()
    assert outcome.job.page == folder / "attempt" / "index.html"
    assert contents(folder) == good
    dashboard = write_dashboard("smoke").read_text()
    assert "the numbers are those of the last good run" in dashboard
    assert 'href="ega/table1/attempt/index.html"' in dashboard and 'href="ega/table1/index.html"' in dashboard
    project("ega/table1", "value = 2")
    assert run_all()["ega/table1"].state == "done" and not (folder / "attempt").exists()


@pytest.mark.parametrize("way", ["repro run --set", "papermill", "an edited cell", "another preset's name"])
def test_a_trial_never_touches_the_presets_record(project: Project, tmp_path: Path, way: str) -> None:
    """Each way in which a run can carry a preset's name with values of its own."""
    notebook = project("ega/table1", "value = 1")
    values = {"preset": "quick", "images": 9, "rate": 0.5, "method": "label", "seeds": [0]}
    file = tmp_path / "params" / "quick" / "ega" / "table1.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump(values))
    table = Table("ega/table1")
    assert Runner(1).run(make_jobs([table], "quick"))[0].state == "done"
    good = contents(table.report("quick"))
    trial = table.report("quick", trial=True)
    if way == "repro run --set":
        outcome = Runner(1).run(make_jobs([table], "quick", {"images": 2}))[0]
        assert outcome.state == "done" and outcome.job.page == trial / "index.html"
        assert "TRIAL" in outcome.job.page.read_text()
    else:
        given = {"papermill": values | {"images": 2}, "another preset's name": {"preset": "quick"}}.get(way, {})
        if way == "an edited cell":
            text = notebook.read_text()
            notebook.write_text(text.replace('preset: Preset = \\"smoke\\"', 'preset: Preset = \\"quick\\"'))
            assert notebook.read_text() != text
        environment = {**os.environ, "REPRO_RUN_ID": "interactive"}
        code = f"import papermill; papermill.execute_notebook({str(notebook)!r}, None, {given!r}, progress_bar=False)"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert load_record(trial).trial and not load_record(table.report("quick")).trial
    assert contents(table.report("quick")) == good


def test_the_preset_is_said_once(project: Project) -> None:
    project("ega/table1", "value = 1")
    with pytest.raises(UserError, match="choose it with --preset"):
        make_jobs(all_tables(), "smoke", {"preset": "quick"})


def obey_interrupts() -> None:
    """A shell makes its background jobs ignore SIGINT, `nohup` SIGHUP; the runner under test must not inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def process_of(marker: Path) -> psutil.Process:
    """The process that writes its id into `marker`, once it has."""
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return psutil.Process(int(marker.read_text()))


def all_end(processes: list[psutil.Process], seconds: float = 10) -> bool:
    """Whether all have ended within that time; one that only waits to be collected by its parent has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whom", ["runner", "worker"])
def test_signals_end_every_process(project: Project, tmp_path: Path, number: signal.Signals, whom: str) -> None:
    marker = tmp_path / "kernel.pid"
    body = f"import os, time, pathlib; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    project("ega/table1", body)
    command = [sys.executable, "-m", "repro.cli", "run"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=obey_interrupts
    )
    kernel = process_of(marker)
    (worker,) = psutil.Process(process.pid).children()
    {"runner": process, "worker": worker}[whom].send_signal(number)
    assert all_end([kernel, worker])
    output, _ = process.communicate(timeout=120)  # where only a worker was ended, the dashboard is made
    assert process.returncode == (128 + number if whom == "runner" else 1), output
    assert "Traceback" not in output
    attempt = load_attempt(Table("ega/table1").report("smoke"))
    assert attempt is not None and attempt.state in ("interrupted", "failed") and "stopped by SIG" in attempt.error


def test_a_killed_runner_takes_its_workers_along(project: Project, tmp_path: Path) -> None:
    marker = tmp_path / "kernel.pid"
    body = f"import os, time, pathlib; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    project("ega/table1", body)
    process = subprocess.Popen([sys.executable, "-m", "repro.cli", "run"], stdout=subprocess.DEVNULL)
    kernel = process_of(marker)
    family = [kernel, *psutil.Process(process.pid).children()]
    process.kill()
    process.wait()
    assert all_end(family)
