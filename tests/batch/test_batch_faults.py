"""Batch runs under faults: whatever is killed, a record is whole or absent, and the next call finishes the rest."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import runner_process
from typer.testing import CliRunner

from repro.batch.runner import Outcome, Runner, make_jobs
from repro.catalogue import Table, all_tables
from repro.cli import app
from repro.evidence.record import InvalidRecord, load_attempt, load_record
from repro.files import atomic_path
from repro.project import UserError
from repro.report.html import bullet_list, key_value_table
from repro.report.pages import write_dashboard

Project = Callable[[str, str], Path]
BODY = "import time; time.sleep(0.3)"
WORKER, KERNEL = "repro.batch.worker", "ipykernel_launcher"


def run_all(images: int) -> list[Outcome]:
    return Runner(jobs_at_once=2).run(make_jobs(all_tables(), "smoke", {"images": images}))


def trial(table: Table) -> Path:
    """Where runs with a number of images of their own go."""
    return table.report("smoke", trial=True)


def check_whole_or_absent() -> None:
    """Every record on disk is valid; no attempt claims to be running."""
    for table in all_tables():
        folder = trial(table)
        if (folder / "result.json").exists():
            load_record(folder)
        attempt = load_attempt(folder)
        assert attempt is None or attempt.state != "running"


def check_finished(images: int) -> None:
    """A further call leaves nothing undone, and the numbers are those asked for."""
    assert all(outcome.good for outcome in run_all(images))
    for table in all_tables():
        record = load_record(trial(table))
        assert record.trial and [row.value for row in record.rows] == [images]
        assert not [path.name for path in trial(table).iterdir() if path.name.endswith(".tmp") or path.is_dir()]


class Killer(threading.Thread):
    """Sends a signal to every process of a kind, each at a random moment after it is seen first."""

    def __init__(self, kind: str, number: signal.Signals, chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.kind, self.number, self.chance, self.kills, self.over = kind, number, chance, 0, threading.Event()

    def run(self) -> None:
        due: dict[psutil.Process, float] = {}
        while not self.over.wait(0.02):
            for process in runner_process.descendants(self.kind):
                moment = due.setdefault(process, time.monotonic() + self.chance.uniform(0, 3))
                if time.monotonic() >= moment:
                    del due[process]
                    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):  # it may end by itself just now
                        process.send_signal(self.number)
                        self.kills += 1
                        process.wait(10)


@pytest.mark.faults("{id}", "that notebook fails, no half record, the next call finishes")
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param(KERNEL, signal.SIGKILL, id="kill -9 of the kernel"),
        pytest.param(WORKER, signal.SIGKILL, id="kill -9 of the notebook's worker"),
        pytest.param(KERNEL, signal.SIGTERM, id="TERM to the kernel"),
        pytest.param(WORKER, signal.SIGTERM, id="TERM to the notebook's worker"),
    ],
)
def test_kernels_and_workers_killed(
    kind: str, number: signal.Signals, project: Project, moments: int, chance: random.Random,
    injected: Callable[[int], None],
) -> None:  # fmt: skip
    for table in (1, 2):
        project(f"ega/table{table}", BODY)
    killer = Killer(kind, number, chance)
    killer.start()
    images = 10
    while killer.kills < moments:
        assert killer.is_alive()
        images += 1
        before = killer.kills
        outcomes = run_all(images)
        assert all(outcome.good or outcome.state == "failed" for outcome in outcomes)
        assert sum(not outcome.good for outcome in outcomes) <= killer.kills - before, "failed without being killed"
        check_whole_or_absent()
    killer.over.set()
    killer.join()
    check_finished(images)
    injected(killer.kills)


@pytest.mark.faults("kill -9 of the runner", "workers finish or are found interrupted; the next call does the rest")
def test_runner_killed(
    project: Project, tmp_path: Path, moments: int, chance: random.Random, injected: Callable[[int], None]
) -> None:
    for number in (1, 2):
        project(f"ega/table{number}", BODY)
    kills, images = 0, 10
    while kills < moments:
        images += 1
        process = runner_process.start({"REPRO_PROJECT": str(tmp_path)}, images)
        process.join(chance.uniform(0, 4))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        for table in all_tables():
            if (trial(table) / "result.json").exists():
                load_record(trial(table))
    check_finished(images)
    check_whole_or_absent()
    injected(kills)


@pytest.mark.faults("two runners at once on one reports folder", "each notebook runs once, both succeed")
def test_two_runners(project: Project, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    for number in (1, 2):
        project(f"ega/table{number}", f"open({str(marks)!r}, 'a').write('x')\n{BODY}")
    runners = [runner_process.start({"REPRO_PROJECT": str(tmp_path)}, 5) for _ in range(2)]
    for runner in runners:
        runner.join()
    assert [runner.exitcode for runner in runners] == [0, 0]
    assert marks.read_text() == "xx"
    assert {outcome.state for outcome in run_all(5)} == {"unchanged"}


@pytest.mark.faults("disk full while writing a record", "the notebook fails by name, the earlier record stays")
def test_disk_full_at_the_record(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project("ega/table1", BODY)
    run_all(5)
    full = "import repro.files\ndef fail(*a, **k):\n    raise OSError(28, 'No space left on device')\n"
    project("ega/table1", full + "repro.files.os.fsync = fail")
    (outcome,) = run_all(6)
    assert outcome.state == "failed" and "No space left on device" in outcome.error
    assert load_record(trial(Table("ega/table1"))).parameters["images"] == 5
    check_whole_or_absent()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own; only where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.faults("a really full file system under an atomic write", "the old file stays, no half file remains")
def test_full_file_system(tiny_disk: Path) -> None:
    target = tiny_disk / "result.json"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"old" * 1000)
    for size in (300_000, 260_000, 250_000):
        with pytest.raises(OSError, match="No space left"), atomic_path(target) as temporary:
            temporary.write_bytes(b"x" * (size + 10_000))
        assert target.read_bytes() == b"old" * 1000
        assert [path.name for path in tiny_disk.iterdir()] == ["result.json"]


@pytest.mark.faults("full file system as reports folder", "refused before a kernel starts, with what to do")
def test_full_reports_folder(project: Project, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project("ega/table1", BODY)
    monkeypatch.setenv("REPRO_REPORTS", str(tiny_disk))
    (tiny_disk / "smoke").mkdir()
    with (tiny_disk / "filler").open("wb") as stream, pytest.raises(OSError):
        stream.write(b"x" * 400_000)
    result = CliRunner().invoke(app, ["run"])
    assert isinstance(result.exception, UserError) and "REPRO_REPORTS" in str(result.exception)
    assert not (tiny_disk / "smoke" / "ega").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written: by its mode, for the superuser by the immutable flag."""
    folder = tmp_path / "closed"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
    elif subprocess.run(["chattr", "+i", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("the superuser can write everywhere here")
    yield folder
    subprocess.run(["chattr", "-i", str(folder)], check=True) if not os.geteuid() else folder.chmod(0o755)


@pytest.mark.faults("read-only reports folder", "refused before a kernel starts, with what to do")
def test_read_only_reports(project: Project, read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project("ega/table1", BODY)
    monkeypatch.setenv("REPRO_REPORTS", str(read_only))
    result = CliRunner().invoke(app, ["run"])
    assert isinstance(result.exception, UserError)
    assert "REPRO_REPORTS" in str(result.exception) and str(read_only) in str(result.exception)


@pytest.mark.faults("disk closed or full in any other command", "one line and status 1, no traceback")
def test_other_commands_on_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from repro import cli

    def full(preset: str, data_sets: object) -> list[Path]:
        raise OSError(errno.ENOSPC, "No space left on device", "reports/index.html")

    monkeypatch.setattr("repro.batch.runner.rebuild_report", full)
    monkeypatch.setattr(sys, "argv", ["repro", "report"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    assert "error: No space left on device: reports/index.html" in capsys.readouterr().err


@pytest.mark.faults("damaged or missing record or attempt, missing HTML", "noticed; the notebook runs again")
@pytest.mark.parametrize("name", ["result.json", "attempt.json", "index.html"])
def test_damaged_reports(name: str, project: Project, injected: Callable[[int], None]) -> None:
    project("ega/table1", "")
    run_all(5)
    folder = trial(Table("ega/table1"))
    path = folder / name
    whole = path.read_bytes()
    damages = [] if name == "index.html" else [b"", whole[: len(whole) // 2], b"\xff\xfe", b"[]", b"{}"]
    job = make_jobs(all_tables(), "smoke", {"images": 5})[0]
    assert job.is_current()
    for damage in damages:
        path.write_bytes(damage)
        assert not job.is_current(), damage
        assert write_dashboard("smoke").exists()
    path.unlink()
    assert not job.is_current()
    injected(len(damages) + 1)
    with pytest.raises(InvalidRecord) if name == "result.json" else pytest.MonkeyPatch.context():
        load_record(folder)


@pytest.mark.faults("clock set back: files from the year 2001 and 2100", "only contents decide what is current")
def test_clocks_do_not_matter(project: Project) -> None:
    notebook = project("ega/table1", "")
    run_all(5)
    for when in (1e9, 4.1e9):
        for path in [notebook, *trial(Table("ega/table1")).iterdir()]:
            os.utime(path, (when, when))
        assert [outcome.state for outcome in run_all(5)] == ["unchanged"]


@pytest.mark.faults("HTML in a class name, an error message or a title", "escaped in every page")
def test_html_is_escaped(project: Project, injected: Callable[[int], None]) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    assert "<script" not in bullet_list([evil]) and "<img" not in bullet_list([evil])
    assert "<script" not in key_value_table(evil, {evil: evil}) and "<img" not in key_value_table("t", {evil: evil})
    project("ega/table1", f"raise ValueError({evil!r})")
    project("ega/table2", f"print({evil!r})\n{evil!r}")
    run_all(5)
    pages = [trial(Table("ega/table1")) / "attempt" / "index.html", trial(Table("ega/table2")) / "index.html"]
    for page in [*pages, write_dashboard("smoke")]:
        text = page.read_text()
        assert "<script" not in text and "onerror=alert(1)>" not in text and "<img src=x" not in text
    injected(4)
