"""The cluster path with stand-ins for SLURM's commands (tests/cluster/stand_in): no real cluster is involved."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_project import project  # noqa: F401 (a fixture)

from repro.batch.cluster import resources_of
from repro.batch.runner import Runner, make_jobs
from repro.catalogue import PRESETS, Table, all_tables
from repro.evidence.record import record_of
from repro.parameters import preset_values
from repro.project import code_root

Project = Callable[[str, str], Path]
HERE = Path(__file__).parent
SNAKEMAKE = shutil.which("snakemake") or (Path(sys.executable).with_name("snakemake").exists() and "beside python")
needs_snakemake = pytest.mark.skipif(not SNAKEMAKE, reason="Snakemake is not installed: pip install '.[cluster]'")


def repro(tmp_path: Path, *arguments: str, checkout: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command with the stand-ins first on PATH: on the notebooks in `tmp_path`, or on those of a checkout."""
    (tmp_path / "slurm").mkdir(exist_ok=True)
    path = os.pathsep.join([str(HERE / "stand_in"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "STAND_IN": str(tmp_path / "slurm"), "REPRO_PROJECT": str(tmp_path)}
    if checkout is not None:
        environment |= {"PYTHONPATH": str(checkout), "REPRO_PROJECT": str(checkout)}
    command = [sys.executable, "-m", "repro.cli", "run", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=3000
    )


def test_every_table_has_resources() -> None:
    for preset in PRESETS:
        for table in all_tables():
            resources_of(table, preset)
    assert resources_of(Table("ega/table2_ilsvrc"), "paper").runtime > resources_of(Table("dfg/x"), "paper").runtime


def test_training_jobs_are_possible() -> None:
    from repro.studies.dfg import wanted_of
    from repro.studies.ega import trials_of

    trained = [table for table in all_tables() if resources_of(table, "paper").training_gpus]
    assert {table.paper for table in trained} == {"ega", "dfg"}
    for table in trained:
        values, devices = preset_values(table, "paper"), resources_of(table, "paper").training_gpus
        if table.paper == "dfg":
            assert wanted_of(table.id, values) and devices == 1, table.id
        else:
            assert trials_of(table.id, values) and values["batch_size"] % devices == 0, table.id


def test_shared_trainings_on_several_devices_come_first() -> None:
    """Such a training gives up when another job has its run; so whoever shares one waits for it."""
    from repro.studies.ega import trials_of

    def trainings(id: str) -> set[str]:
        trials = trials_of(id, preset_values(Table(id), "paper"))
        own = {"test_images", "class_crops"}  # of the evaluation
        return {f"{one.study.model_dump(exclude=own)} {one.settings.trained_as!r}" for one in trials}

    ega = {table.id: resources_of(table, "paper") for table in all_tables() if table.paper == "ega"}
    keys = {id: trainings(id) for id in ega}
    for id, asked in ega.items():
        for other in ega:
            if asked.training_gpus > 1 and other != id and keys[id] & keys[other]:
                assert ega[other].training_after == id, f"{other} shares trainings with {id}"
    assert ega["ega/table5_corloc"].training_after == "ega/table2_ilsvrc"


@needs_snakemake
def test_dry_run_shows_jobs_and_submission_lines(project: Project, tmp_path: Path) -> None:  # noqa: F811
    project("ega/table1", "")
    project("dfg/table1", "")
    result = repro(tmp_path, "--executor", "slurm", "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    for id in ("ega/table1", "dfg/table1"):
        assert f"sbatch -t 30 --mem 4000 --cpus-per-task=1: repro run {id} --preset smoke" in result.stdout
    assert "rule table" in result.stdout + result.stderr
    assert not (tmp_path / "slurm" / "sbatch.log").exists(), "a dry run submitted something"
    assert record_of(Table("ega/table1"), "smoke") is None


@needs_snakemake
@pytest.mark.faults("one failing notebook on a stand-in SLURM cluster", "the rest finish; a second call runs only it")
def test_stand_in_cluster(project: Project, tmp_path: Path) -> None:  # noqa: F811
    project("ega/table2", "")
    Runner(jobs_at_once=1).run(make_jobs(all_tables(), "smoke"))
    project("ega/table2", "raise ValueError('on purpose')")
    project("ega/table1", "")
    project("dfg/table1", "")
    options = ["--executor", "slurm", "--profile", str(HERE / "profile")]
    first = repro(tmp_path, *options)
    log = tmp_path / "slurm" / "sbatch.log"
    assert first.returncode == 1, first.stdout + first.stderr
    assert "failed: ega/table2" in first.stdout and "2 of 3 records valid" in first.stdout
    submitted = log.read_text().splitlines()
    assert len(submitted) == 3
    assert all("-t 30 --mem 4000" in line and "--cpus-per-task=1" in line for line in submitted)
    assert record_of(Table("dfg/table1"), "smoke") and record_of(Table("ega/table1"), "smoke")
    assert record_of(Table("ega/table2"), "smoke"), "the failed re-run cost the earlier record"
    assert "on purpose" in (Table("ega/table2").report("smoke") / "attempt" / "index.html").read_text()
    project("ega/table2", "mended = True")
    second = repro(tmp_path, *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert len(log.read_text().splitlines()) == 4, "a second call ran more than what was missing"
    third = repro(tmp_path, *options)
    assert third.returncode == 0 and "nothing to do" in third.stdout


@needs_snakemake
def test_snakemake_on_this_machine(project: Project, tmp_path: Path) -> None:  # noqa: F811
    project("ega/table1", "")
    project("dfg/table1", "raise ValueError('on purpose')")
    first = repro(tmp_path, "--executor", "snakemake", "--jobs", "2")
    assert first.returncode == 1 and "1 of 2 records valid" in first.stdout, first.stdout + first.stderr
    project("dfg/table1", "mended = True")
    second = repro(tmp_path, "--executor", "snakemake")
    assert second.returncode == 0 and "2 of 2 records valid" in second.stdout, second.stdout + second.stderr
    assert "nothing to do" in repro(tmp_path, "--executor", "snakemake").stdout
    assert not (tmp_path / "slurm" / "sbatch.log").exists()


@needs_snakemake
@pytest.mark.campaign
@pytest.mark.faults("one of all smoke notebooks fails, stand-in SLURM", "the rest finish; only it is re-run")
def test_all_smoke_notebooks_on_the_stand_in_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REPRO_REPORTS", "REPRO_RUNS"):
        monkeypatch.delenv(variable, raising=False)
    clone, spoiled = tmp_path / "clone", "dfg/table1_datasets"
    subprocess.run(["git", "clone", "--quiet", "--local", str(code_root()), str(clone)], check=True)
    notebook = clone / "notebooks" / f"{spoiled}.ipynb"
    whole = notebook.read_text()
    notebook.write_text(whole.replace("experiment.save()", "raise ValueError('on purpose')"))
    count = len(all_tables())
    options = ["--executor", "slurm", "--profile", str(HERE / "profile"), "--jobs", "2"]
    first = repro(tmp_path, *options, checkout=clone)
    assert first.returncode == 1, first.stdout + first.stderr
    assert f"failed: {spoiled}" in first.stdout and f"{count - 1} of {count} records valid" in first.stdout
    log = tmp_path / "slurm" / "sbatch.log"
    submitted = len(log.read_text().splitlines())
    notebook.write_text(whole)
    second = repro(tmp_path, *options, checkout=clone)
    assert second.returncode == 0 and f"{count} of {count} records valid" in second.stdout, second.stdout
    assert len(log.read_text().splitlines()) == submitted + 1
