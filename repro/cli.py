"""The `repro` command."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table as RichTable

from repro.catalogue import PRESETS, Preset, Table, all_tables, nearest, one_of, select
from repro.evidence.record import Plan, Prediction
from repro.project import UserError, code_root, reports_root
from repro.stored_runs import collect_garbage, find_run, remove_run, stored_runs

# `repro plan`: predicted cost of tables on the device at hand.

GIBIBYTE = 2**30


def show_plan(tables: list[Table], preset: Preset, overrides: dict[str, object], steps: int, as_json: bool) -> None:
    """Calibrate, print a table (or JSON) and write `reports/<preset>/plan.json`.

    Raises:
        UserError: the parameters of a table are not valid.
    """
    from repro.plan import MODEL, make_plan

    quiet = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = make_plan(
        tables, preset, overrides, steps, lambda table: quiet.print(f"calibrating {table.id} …", markup=False)
    )
    path = plan.save()
    console = Console(highlight=False, width=max(Console().width, 130))
    if as_json:
        print(plan.model_dump_json(indent=1))
        return
    console.print(plan_table(plan))
    for id, found in plan.tables.items():
        for note in found.notes:
            console.print(f"{id}: {note}", markup=False, soft_wrap=True)
    console.print(MODEL, markup=False, soft_wrap=True)
    console.print(
        "Not counted: starting kernels, making HTML, reading stored images, statistics over seeds. Trainings already "
        f"in the run store are counted as if they were not. Written to {path}",
        markup=False,
        soft_wrap=True,
    )


def plan_table(plan: Plan) -> RichTable:
    """One row per table and a sum."""
    found = RichTable(title=f"Predicted cost, {plan.preset} preset")
    found.add_column("table", no_wrap=True)
    for name in ("time", "interval", "GPU hours", "GPU memory", "host memory ≤", "disk"):
        found.add_column(name, justify="right", no_wrap=True)
    for id, one in plan.tables.items():
        found.add_row(id, *_cells(one))
    for id, reason in plan.refused.items():
        found.add_row(id, "cannot be calibrated", reason, *[""] * 4)
    known = list(plan.tables.values())
    if known:
        hours = None if any(one.gpu_hours is None for one in known) else sum(one.gpu_hours or 0 for one in known)
        found.add_section()
        found.add_row(
            "all, one after the other",
            duration(sum(one.seconds for one in known)),
            f"{duration(sum(one.low for one in known))} – {duration(sum(one.high for one in known))}",
            _hours(hours),
            "",
            "",
            size(sum(one.disk_bytes for one in known)),
        )
    return found


def _cells(one: Prediction) -> list[str]:
    memory = "no GPU here" if one.device_memory_bytes is None else size(one.device_memory_bytes)
    return [
        duration(one.seconds),
        f"{duration(one.low)} – {duration(one.high)}",
        _hours(one.gpu_hours),
        memory,
        size(one.host_memory_bytes),
        size(one.disk_bytes),
    ]


def _hours(hours: float | None) -> str:
    return "no GPU here" if hours is None else f"{hours:.1f}"


def duration(seconds: float) -> str:
    """In the largest unit that leaves a number above 1."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: int) -> str:
    """Bytes in GiB or MiB."""
    return f"{count / GIBIBYTE:.1f} GiB" if count >= GIBIBYTE else f"{count / 2**20:.1f} MiB"


# `repro runs`: what the run store holds, and how to free its disk space.

runs_app = typer.Typer(help="Trainings in the run store: states, sizes, removal.", no_args_is_help=True)

Key = Annotated[str, typer.Argument(metavar="KEY", help="a run's key, or the beginning of it")]
_MEGABYTE = 1e6


@runs_app.command("list")
def list_runs() -> None:
    """List every run: key, state, size on disk, training time."""
    runs = stored_runs()
    for run in runs:
        facts = f"{run.key:34} {run.state:12} {run.size / _MEGABYTE:8.1f} MB  {run.wall_seconds:8.1f} s"
        console.print(facts + (f"  {run.error.splitlines()[0]}" if run.error else ""), markup=False)
    console.print(f"{len(runs)} runs, {sum(run.size for run in runs) / _MEGABYTE:.1f} MB", markup=False)


@runs_app.command("show")
def show(key: Key) -> None:
    """Show one run: state, checkpoints and its whole configuration."""
    run = find_run(key)
    console.print(f"{run.key}: {run.state}" + (f": {run.error}" if run.error else ""), markup=False)
    console.print(f"{run.size / _MEGABYTE:.1f} MB in {run.folder}", markup=False)
    console.print(f"checkpoints: {', '.join(run.checkpoints) or 'none'}", markup=False)
    console.print(json.dumps(run.config, indent=1, ensure_ascii=False), markup=False)


@runs_app.command("rm")
def remove(keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="runs to delete")]) -> None:
    """Delete runs with their results; what needs them trains again."""
    for run in [find_run(key) for key in keys]:
        remove_run(run)
        console.print(f"removed {run.key}", markup=False)


@runs_app.command("gc")
def garbage() -> None:
    """Delete what no run needs: files of killed processes, checkpoints of finished runs, empty runs."""
    console.print(f"freed {collect_garbage() / _MEGABYTE:.1f} MB", markup=False)


# `repro train`: the trainings of a notebook ahead of it, through the run store; EGA's on any number of devices.

train_app = typer.Typer(help="Train what a notebook needs, ahead of it and on several devices.", no_args_is_help=True)


TableName = Annotated[str, typer.Argument(metavar="TABLE", help="notebook, e.g. table6_components")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="replace one parameter")]
Devices = Annotated[int, typer.Option("--devices", "-d", min=1, help="devices (GPUs, or CPU processes)")]


@train_app.command("ega")
def train_ega_tables(
    table: TableName, preset: PresetOption = "paper", set_: Assignments = None, devices: Devices = 1
) -> None:
    """Train every network that notebook TABLE of EGA needs under a preset; finished trainings are not repeated.

    The notebook run afterwards finds them in the run store. An interrupted command continues where it was.
    """
    _check_devices(devices)
    values = _values(f"ega/{table}", preset, set_)
    if values.get("batch_size", devices) < devices:
        raise UserError(
            f"batch_size {values['batch_size']} leaves some of {devices} devices without an image; "
            "raise batch_size or use fewer devices"
        )
    if devices > 1 and not _launched():
        raise typer.Exit(_torchrun(devices))
    from repro.studies.ega import train_trials

    train_trials(f"ega/{table}", values, devices)


@train_app.command("dfg")
def train_dfg_tables(
    table: TableName, preset: PresetOption = "paper", set_: Assignments = None, devices: Devices = 1
) -> None:
    """Train every network that notebook TABLE of DFG needs under a preset; finished trainings are not repeated.

    One device: on a GPU as many trainings at once as its memory holds.
    """
    if devices > 1:
        raise UserError(f"--devices {devices}: trainings of DFG are small and many; they share one device")
    values = _values(f"dfg/{table}", preset, set_)
    from repro.studies.dfg import train_wanted

    train_wanted(f"dfg/{table}", values)


def _values(id: str, preset: str, assignments: list[str] | None) -> dict[str, Any]:
    from repro.parameters import parse_assignments, preset_values

    return preset_values(Table(id), _preset(preset), parse_assignments(assignments or []))


def _launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _check_devices(devices: int) -> None:
    """Refuse before anything is read or started.

    Raises:
        UserError: there are not that many devices.
    """
    if devices == 1:
        return
    import torch

    there = torch.cuda.device_count() or os.cpu_count() or 1
    if devices > there:
        kind = "GPUs" if torch.cuda.is_available() else "cores"
        raise UserError(f"--devices {devices}: this machine has {there} {kind}")


def _torchrun(devices: int) -> int:
    """This very command once per device; status of the first that failed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.run([*launcher, "-m", "repro.cli", *sys.argv[1:]], check=False).returncode


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
_EXECUTORS: tuple[Where, ...] = get_args(Where)
PresetOption = Annotated[str, typer.Option("--preset", "-p", help="smoke, quick or paper")]


def _preset(given: str) -> Preset:
    return one_of("--preset", given, PRESETS)


@app.command("list")
def list_tables() -> None:
    """List every table and figure with its presets and the state of its record."""
    from repro.evidence.record import read_records

    kept = {preset: read_records(reports_root() / preset) for preset in PRESETS}
    for table in all_tables():
        found = [preset for preset, (records, _) in kept.items() if table.id in records]
        state = "record: " + ", ".join(found) if found else "no record yet"
        console.print(f"{table.id:40} {table.title}  ({state})", markup=False)
    _warn_of_left_out({f"{preset}/{id}": text for preset, (_, bad) in kept.items() for id, text in bad.items()})


def _data_sets() -> list[dict[str, str]]:
    from repro.data.registry import describe  # loads torch

    return describe()


def _warn_of_left_out(problems: Mapping[str, str]) -> None:
    for place, problem in problems.items():
        console.print(f"left out: reports/{place}/result.json: {problem}", markup=False)


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
    from repro.batch.runner import make_jobs, run_and_report
    from repro.parameters import parse_assignments

    overrides = parse_assignments(set_ or [])
    chosen, where = _preset(preset), one_of("--executor", executor, _EXECUTORS)
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
    steps: Annotated[int, typer.Option("--steps", min=2, help="timed steps of the commonest kind of every loop")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON")] = False,
) -> None:
    """Predict time, memory, disk space and GPU hours of tables from a few steps of each training on this device.

    Needs no data and spends nothing: stand-in images, random weights. `repro run` puts the prediction into the record
    beside what the run took.
    """
    from repro.parameters import parse_assignments

    show_plan(select(ids or []), _preset(preset), parse_assignments(set_ or []), steps, as_json)


data_app = typer.Typer(help="Data sets: what there is, whether it is complete, how to get it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
app.add_typer(train_app, name="train")


@data_app.command("list")
def data_list() -> None:
    """List every data set with its licence, size and source."""
    from repro.data.registry import describe

    for row in describe():
        console.print(f"{row['name']}: {row['title']}", style="bold", markup=False)
        console.print(f"    {row['splits']} · licence: {row['licence']} · {row['homepage']}", markup=False)
        console.print(f"    {row['get']}", markup=False)


@data_app.command("check")
def data_check(names: Names = None) -> None:
    """Check files against counts and checksums; no NAME means all. Status 1 if one of the named is not usable."""
    from repro.data.preparation import check
    from repro.data.registry import ENTRIES

    results = [check(name) for name in names or ENTRIES]
    for result in results:
        console.print(str(result), markup=False)
    raise typer.Exit(1 if names and not all(result.ok for result in results) else 0)


@data_app.command("prepare")
def data_prepare(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="data sets")],
    source: Annotated[Path | None, typer.Option("--from", help="folder that holds the archives, at any depth")] = None,
) -> None:
    """Unpack and verify data sets and what they need below REPRO_DATA, from a folder of archives or by download."""
    from repro.data.preparation import prepare

    results = []
    for name in names:
        with console.status(name) as status:
            results.append(
                prepare(name, source, progress=lambda what, done, total: status.update(_share(what, done, total)))
            )
        console.print(str(results[-1]), markup=False)
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


def _share(what: str, done: int, total: int) -> str:
    return f"{what}: {done / total:.0%}" if total else what


@app.command()
def verdicts(
    preset: PresetOption = "quick",
    paper: Annotated[list[str] | None, typer.Option("--paper", help="ega, dfg or scorecampp; repeatable")] = None,
    state: Annotated[bool, typer.Option("--state", help="write today's verdicts to docs/stated.yaml")] = False,
) -> None:
    """Say for every claim of the papers whether the records support it, contradict it, or leave it open.

    A smoke run never gets a verdict. `--state` fixes what the README may say; a test checks it later.
    """
    from repro.report.verdict_views import print_verdicts, state_verdicts

    chosen = _preset(preset)
    print_verdicts(chosen, paper or [], console)
    if state:
        console.print(state_verdicts(chosen), markup=False)


@app.command()
def report(preset: PresetOption = "smoke") -> None:
    """Rebuild HTML and dashboard from notebooks and records; quick and paper also RESULTS.md and the README's tables.

    Nothing is run, and only files that differ are written, all of them or none.
    """
    from repro.batch.runner import rebuild_report
    from repro.evidence.record import PAGE, read_records

    folder = reports_root() / _preset(preset)
    written = rebuild_report(_preset(preset), _data_sets)
    _warn_of_left_out({f"{preset}/{id}": problem for id, problem in read_records(folder)[1].items()})
    console.print(f"dashboard: {folder / PAGE} ({len(written)} files written)", markup=False)


@app.command()
def explain(
    architecture: Annotated[str, typer.Option(help="timm:NAME, torchvision:NAME or one of the package's own")] = (
        "timm:tf_efficientnet_lite0"
    ),
    weights: Annotated[str, typer.Option(help="a file, package, timm, torchvision, or random")] = "package",
    images: Annotated[Path | None, typer.Option(help="folder of images; default: five photographs")] = None,
    layer: Annotated[str | None, typer.Option(help="dotted name; default: the last one behind a rectifier")] = None,
    classes: Annotated[int, typer.Option(min=1, help="number of the network's classes")] = 1000,
    out: Annotated[Path | None, typer.Option(help="folder of the page; default: reports/own")] = None,
) -> None:
    """Explain your own network on your own pictures: maps by every method, faithfulness, one offline page."""
    from repro.studies.own import COLUMNS, PHOTOS, explain_images, write_study

    try:
        chosen = None if weights == "random" else weights
        study = explain_images(architecture, chosen, images or PHOTOS, layer=layer, num_classes=classes)
    except ValueError as error:
        raise UserError(str(error)) from error
    table = RichTable(*COLUMNS)
    for row in study.rows:
        table.add_row(*row)
    console.print(table)
    for name, fact in study.facts.items():
        console.print(f"{name}: {fact}", markup=False)
    console.print(f"written: {write_study(study, out or reports_root() / 'own')}", markup=False)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="scripts of benchmarks/")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a trial of seconds, into benchmarks/output/")] = False,
) -> None:
    """Compare speed and memory with the peers, side by side in one run; writes benchmarks/results/NAME.json.

    The peers come with the `bench` extra: `make bench` installs them. `repro report --preset quick` then renews the
    README's speed table.
    """
    others = {"gpu", "coverage", "speed_record", "max_box_prototype"}  # no comparison with a peer
    found = sorted((code_root() / "benchmarks").glob("*.py"))
    scripts = {path.stem: path for path in found if path.stem not in others}
    for name in names or scripts:
        if name not in scripts:
            raise UserError(f"no benchmark '{name}': {nearest(name, list(scripts))}")
        console.rule(name)
        if subprocess.run([sys.executable, str(scripts[name]), *(["--quick"] * quick)], cwd=code_root()).returncode:
            raise typer.Exit(1)


def main() -> None:
    """Run the command; mistakes of the user become one message and status 2, a full or closed disk one and status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII shows escapes, not a traceback
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
