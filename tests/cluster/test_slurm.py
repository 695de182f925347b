"""Notebooks on a real SLURM of one node without accounting: a cancelled job, a failing one, a killed command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import slurm_node
from test_cluster import needs_snakemake
from tiny_project import project  # noqa: F401 (a fixture)

from repro.catalogue import Table
from repro.evidence.record import ATTEMPT_FILE, record_of

Project = Callable[[str, str], Path]
pytestmark = [
    pytest.mark.campaign,
    needs_snakemake,
    pytest.mark.skipif(bool(slurm_node.why_not()), reason=slurm_node.why_not() or "-"),
]
PROFILE = """executor: slurm
jobs: 4
keep-going: true
rerun-incomplete: true
latency-wait: 20
slurm-init-seconds-before-status-checks: 1
seconds-between-status-checks: 2
"""
WAITS = "import time, pathlib\nwhile not pathlib.Path({proof!r}).exists(): time.sleep(0.1)"


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    with slurm_node.node():
        yield


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command on all notebooks of a project, through the real SLURM."""
    (folder / "profile").mkdir(exist_ok=True)
    (folder / "profile" / "config.yaml").write_text(PROFILE)
    command = [sys.executable, "-m", "repro.cli", "run", "--executor", "slurm", "--profile", str(folder / "profile")]
    both = {**os.environ, "REPRO_PROJECT": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *options], env=both, text=True, **pipes)  # type: ignore[call-overload]


def jobs(state: str = "RUNNING") -> dict[str, str]:
    """Number by comment (it names the table) of the jobs in a state."""
    command = ["squeue", "-h", "-t", state, "-o", "%i|%k"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return {comment: number for number, comment in (line.split("|", 1) for line in shown.stdout.splitlines())}


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.3)


@pytest.mark.faults("real SLURM: one job cancelled, one fails", "the rest finish; a second call runs only those")
def test_cancelled_and_failing_jobs(project: Project, tmp_path: Path) -> None:  # noqa: F811
    project("ega/table1", "")
    project("ega/table2", WAITS.format(proof=str(tmp_path / "go")))
    project("dfg/table1", "raise ValueError('on purpose')")
    command = start(tmp_path)
    waiting = Table("ega/table2").report("smoke") / ATTEMPT_FILE
    wait_for(lambda: command.poll() is not None or (record_of(Table("ega/table1"), "smoke") and waiting.exists()))
    (number,) = [number for comment, number in jobs().items() if "table2" in comment]
    subprocess.run(["scancel", number], check=True)
    output = command.communicate(timeout=600)[0]
    assert command.returncode == 1 and "1 of 3 records valid" in output, output
    assert "failed: ega/table2" in output and "failed: dfg/table1" in output

    (tmp_path / "go").touch()
    project("dfg/table1", "mended = True")
    before = len(jobs("all"))
    again = start(tmp_path)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0 and "3 of 3 records valid" in output, output
    assert len(jobs("all")) <= before + 2, "a second call ran more than what was missing"


@pytest.mark.faults("real SLURM: the command killed with kill -9", "the next call says who is at work, then goes on")
def test_killed_command(project: Project, tmp_path: Path) -> None:  # noqa: F811
    project("ega/table1", WAITS.format(proof=str(tmp_path / "go")))
    command = start(tmp_path)
    wait_for(lambda: any("table1" in comment for comment in jobs()))
    children = psutil.Process(command.pid).children(recursive=True)
    command.send_signal(signal.SIGKILL)
    command.wait()
    second = start(tmp_path)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 2 and "at work" in output, output
    for child in children:
        child.kill()
    psutil.wait_procs(children, 10)
    (tmp_path / "go").touch()
    third = start(tmp_path)
    output = third.communicate(timeout=600)[0]
    assert third.returncode == 0 and "1 of 1 records valid" in output, output
