"""The `repro` command."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console

from repro.catalogue import PRESETS, Preset, all_tables, nearest, select
from repro.cli_runs import runs_app
from repro.cli_train import train_app
from repro.errors import UserError
from repro.project import code_root

app = typer.Typer(
    help="Reproduction of EGA, DFG and ScoreCAM++: one notebook per table or figure.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(highlight=False, soft_wrap=True)

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="tables (ega/table1_cub) or papers (ega)")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="data sets, see `repro data list`")]
Where = Literal["here", "snakemake", "slurm"]
PresetOption = Annotated[str, typer.Option("--preset", "-p", help="smoke, quick or paper")]


def _preset(given: str) -> Preset:
    for preset in PRESETS:
        if preset == given:
            return preset
    raise UserError(f"--preset {given}: {nearest(given, PRESETS)} (allowed: {', '.join(PRESETS)})")


def _executor(given: str) -> Where:
    allowed: tuple[Where, ...] = get_args(Where)
    for where in allowed:
        if where == given:
            return where
    raise UserError(f"--executor {given}: {nearest(given, allowed)} (allowed: {', '.join(allowed)})")


@app.command("list")
def list_tables() -> None:
    """List every table and figure with its presets and the state of its record."""
    from repro.evidence.record import record_of

    for table in all_tables():
        found = [preset for preset in PRESETS if record_of(table, preset)]
        state = "record: " + ", ".join(found) if found else "no record yet"
        console.print(f"{table.id:40} {table.title}  [dim]({state})[/dim]", markup=True)


@app.command()
def run(
    ids: Ids = None,
    preset: PresetOption = "smoke",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="replace one parameter")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="notebooks at a time")] = 1,
    force: Annotated[bool, typer.Option("--force", help="run again even where a current record exists")] = False,
    executor: Annotated[str, typer.Option("--executor", help="here, snakemake or slurm")] = "here",
    profile: Annotated[Path | None, typer.Option("--profile", help="folder of a Snakemake profile")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the cluster's jobs, start nothing")] = False,
) -> None:
    """Run notebooks and write records, HTML and the dashboard. No ID means all of them.

    Notebooks whose record is current (same notebook, parameters and code) are not run again. The exit status is 0
    only if every requested notebook has a valid record.
    """
    from repro.batch.cluster import run_on_cluster
    from repro.batch.job import make_jobs
    from repro.batch.run import run_and_report
    from repro.parameters import parse_assignment

    overrides: dict[str, Any] = dict(parse_assignment(text) for text in set_ or [])
    chosen, where = _preset(preset), _executor(executor)
    if where == "here" and (dry_run or profile):
        raise UserError("--dry-run and --profile belong to --executor snakemake or slurm")
    todo = make_jobs(select(ids or []), chosen, overrides, force)
    if where == "here":
        raise typer.Exit(run_and_report(todo, chosen, jobs, console))
    code = run_on_cluster(
        todo, chosen, where, console, assignments=set_ or [], profile=profile, jobs_at_once=jobs, dry_run=dry_run
    )
    raise typer.Exit(code)


@app.command()
def plan(
    ids: Ids = None,
    preset: PresetOption = "smoke",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="replace one parameter")] = None,
    steps: Annotated[int, typer.Option("--steps", min=2, help="timed steps of every kind")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """Predict time, memory, disk space and GPU hours of tables from a few steps of each training on this device.

    Needs no data and spends nothing: stand-in images, random weights. `repro run` puts the prediction into the record
    beside what the run took.
    """
    from repro.cli_plan import show_plan
    from repro.parameters import parse_assignment

    overrides: dict[str, Any] = dict(parse_assignment(text) for text in set_ or [])
    show_plan(select(ids or []), _preset(preset), overrides, steps, as_json)


data_app = typer.Typer(help="Data sets: what there is, whether it is complete, how to get it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(train_app, name="train")


@data_app.command("list")
def data_list() -> None:
    """List every data set with its licence, size and source."""
    from repro.data import describe

    for row in describe():
        console.print(f"{row['name']}: {row['title']}", style="bold", markup=False)
        console.print(f"    {row['splits']} · licence: {row['licence']} · {row['homepage']}", markup=False)
        console.print(f"    {row['get']}", markup=False)


@data_app.command("check")
def data_check(names: Names = None) -> None:
    """Check files against counts and checksums; no NAME means all. Status 1 if one of the named is not usable."""
    from repro.data import ENTRIES, check

    results = [check(name) for name in names or ENTRIES]
    for result in results:
        console.print(str(result), markup=False)
    raise typer.Exit(1 if names and not all(result.ok for result in results) else 0)


@data_app.command("prepare")
def data_prepare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="data sets")],
    source: Annotated[Path | None, typer.Option("--from", help="folder that holds the archives, at any depth")] = None,
) -> None:
    """Unpack and verify data sets below REPRO_DATA, from a folder of archives or by torchvision's download."""
    from repro.data import prepare

    for name in names:
        console.print(str(prepare(name, source)), markup=False)


@app.command()
def verdicts(
    preset: PresetOption = "quick",
    paper: Annotated[list[str] | None, typer.Option("--paper", help="ega, dfg or scorecampp; repeatable")] = None,
    state: Annotated[bool, typer.Option("--state", help="write today's verdicts to docs/stated.yaml")] = False,
) -> None:
    """Say for every claim of the papers whether the records support it, contradict it, or leave it open.

    A smoke run never gets a verdict. `--state` fixes what the README may say; `pytest --claims reports/quick` checks
    it later.
    """
    from repro.report.terminal import print_verdicts, state_verdicts

    chosen = _preset(preset)
    print_verdicts(chosen, paper or [], console)
    if state:
        console.print(state_verdicts(chosen), markup=False)


@app.command()
def report(preset: PresetOption = "smoke") -> None:
    """Rebuild HTML, dashboard and (quick, paper) RESULTS.md from notebooks and records; nothing is run."""
    from repro.batch.run import rebuild_report

    console.print(f"dashboard: {rebuild_report(_preset(preset))}")


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="scripts of benchmarks/")] = None,
) -> None:
    """Compare speed and memory with the peers, side by side in one run; writes benchmarks/output/NAME.json.

    The peers come with the `bench` extra: `make bench` installs them.
    """
    scripts = {path.stem: path for path in sorted((code_root() / "benchmarks").glob("*.py"))}
    for name in names or scripts:
        if name not in scripts:
            raise UserError(f"no benchmark '{name}': {nearest(name, list(scripts))}")
        console.rule(name)
        if subprocess.run([sys.executable, str(scripts[name])], cwd=code_root()).returncode:
            raise typer.Exit(1)


def main() -> None:
    """Run the command; mistakes of the user become one message and status 2, a full or closed disk one and status 1."""
    try:
        app()
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        where = f": {error.filename}" if error.filename else ""
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error.strerror}{where}", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
