"""Runs notebooks through Snakemake, on this machine or on SLURM; every job is an ordinary `repro run ID`.

Snakemake only schedules. What is stale is decided here, from content hashes, so that a changed time stamp never costs
GPU-days. It is optional (`pip install .[cluster]`) and may live in an environment of its own, found on PATH.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from rich.console import Console

from repro.batch.runner import Job
from repro.catalogue import Preset, Table
from repro.files import write_json
from repro.parameters import read_yaml
from repro.project import UserError, code_root, reports_root

Executor = Literal["snakemake", "slurm"]
_HERE = Path(__file__).parent
_PROFILES: Mapping[Executor, str] = {"snakemake": "local", "slurm": "slurm"}


class Resources(BaseModel):
    """What one notebook asks of a cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: NonNegativeInt
    cpus_per_task: PositiveInt
    mem_mb: PositiveInt
    """Host memory."""
    runtime: PositiveInt
    """Minutes."""

    training_gpus: NonNegativeInt = 0
    """Devices of the training job that runs before the notebook; 0 leaves training to the notebook."""

    training_after: str = ""
    """Table whose training job comes before anything of this one, where both run."""

    def flags(self, gpus: int) -> str:
        """As `sbatch` gets them from Snakemake's SLURM executor."""
        devices = f" --gpus={gpus}" if gpus else ""
        return f"-t {self.runtime} --mem {self.mem_mb} --cpus-per-task={self.cpus_per_task}{devices}"


def resources_of(table: Table, preset: Preset) -> Resources:
    """The first line of `resources.yaml` whose pattern fits."""
    lines: list[dict[str, Any]] = read_yaml(_HERE / "resources.yaml")[preset]
    fitting = next(line for line in lines if fnmatch(table.id, line["tables"]))
    return Resources.model_validate({name: value for name, value in fitting.items() if name != "tables"})


def run_on_cluster(
    jobs: Sequence[Job],
    preset: Preset,
    executor: Executor,
    console: Console,
    *,
    assignments: Sequence[str] = (),
    profile: Path | None = None,
    jobs_at_once: int = 1,
    dry_run: bool = False,
) -> int:
    """Run what is not current and return the exit status: 0 where every job has a valid record, else 1.

    Args:
        assignments: the `NAME=VALUE` texts of `--set`, passed on to every job.
        profile: folder with a Snakemake `config.yaml` of the site's own, instead of the package's.
        jobs_at_once: notebooks at a time; a SLURM profile's own `jobs` is used where this is 1.
        dry_run: show jobs and submission lines, start nothing.

    Raises:
        UserError: Snakemake is not installed.
    """
    waiting = [job for job in jobs if job.force or not job.is_current()]
    if not waiting:
        console.print(f"nothing to do: all {len(jobs)} records are current (use --force to run again)")
        return 0
    roots = {job.folder.parents[2] for job in waiting}
    if len(roots) > 1:
        raise UserError("these values are some tables' preset and other tables' trial; run the two apart")
    folder = reports_root() / preset / ".workflow"
    write_json(folder / "config.json", _configuration(waiting, preset, assignments))
    command = _snakemake(folder, executor, profile, jobs_at_once)
    if dry_run:
        for line in _submissions(waiting, preset):
            console.print(line, markup=False)
        return 1 if _run_alone([*command, "--dry-run"], folder) else 0
    before = [_run_of(job) for job in waiting]
    code = _run_alone(command, folder)
    # A record counts that is current and, where an older one was so already, was written by this run.
    missing = [
        job
        for job, earlier in zip(waiting, before, strict=True)
        if not job.is_current() or (job.force and _run_of(job) == earlier)
    ]
    for job in missing:
        console.print(f"failed: {job.table.id}: see {job.page}", markup=False)
    from repro.report.pages import write_dashboard

    dashboard = write_dashboard(preset)
    console.print(f"{len(jobs) - len(missing)} of {len(jobs)} records valid; dashboard: {dashboard}", markup=False)
    if code and not missing:
        console.print(f"Snakemake ended with status {code} although every record is valid; see its messages above")
    return 1 if missing or code else 0


def _run_of(job: Job) -> str | None:
    record = job.record()
    return None if record is None else record.run_id


def _run_alone(command: Sequence[str], folder: Path) -> int:
    """Run Snakemake in its folder, which no other one may use meanwhile; its exit status.

    The lock is the operating system's and is held by Snakemake too, so that it lasts as long as one of the two lives
    and never outlives both. Snakemake's own lock is a file that stays when it is killed; it is not used.

    Raises:
        UserError: another one is at work there, perhaps started by a command that was killed.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Snakemake is at work in {folder} already, perhaps for a command that was killed; wait for it to end "
                "or stop it"
            ) from None
        process = subprocess.Popen(command, env=_environment(), pass_fds=[lock.fileno()])
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # it cancels its jobs
            process.wait()
            raise


def _submissions(jobs: Sequence[Job], preset: Preset) -> Iterator[str]:
    for job in jobs:
        asked = resources_of(job.table, preset)
        if asked.training_gpus:
            words = job.table.id.replace("/", " ")
            yield f"sbatch {asked.flags(asked.training_gpus)}: repro train {words} --preset {preset}"
        yield f"sbatch {asked.flags(asked.gpu)}: repro run {job.table.id} --preset {preset}"


def _configuration(jobs: Sequence[Job], preset: Preset, assignments: Sequence[str]) -> dict[str, Any]:
    options = ["--preset", preset, *(f"--set={text}" for text in assignments)]
    return {
        "preset": preset,
        "reports": str(jobs[0].folder.parents[2]),
        "command": shlex.join([sys.executable, "-m", "repro.cli"]),
        "options": shlex.join(options),
        "force": "--force" if jobs[0].force else "",
        "tables": {job.table.id: resources_of(job.table, preset).model_dump() for job in jobs},
    }


def _snakemake(folder: Path, executor: Executor, profile: Path | None, jobs_at_once: int) -> list[str]:
    beside = Path(sys.executable).with_name("snakemake")
    program = str(beside) if beside.exists() else shutil.which("snakemake")
    if program is None:
        raise UserError(f"--executor {executor} needs Snakemake; install it: pip install '.[cluster]'")
    command = [program, "--snakefile", str(_HERE / "workflow" / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.json"), "--forceall"]
    command += ["--profile", str(profile or _HERE / "workflow" / "profiles" / _PROFILES[executor])]
    command += ["--nolock"]
    if executor == "slurm" and not _has_accounting():
        command += ["--slurm-status-command", "squeue"]
    return command + (["--jobs", str(jobs_at_once)] if executor == "snakemake" or jobs_at_once > 1 else [])


def _has_accounting() -> bool:
    """Whether `sacct` knows how jobs ended; without accounting `squeue` must be asked, as long as it remembers them."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return not re.search(r"^AccountingStorageType\s*=\s*(accounting_storage/none|\(null\))", shown.stdout, re.MULTILINE)


def _environment() -> dict[str, str]:
    paths = [str(code_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
