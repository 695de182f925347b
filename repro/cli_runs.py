"""`repro runs`: what the run store holds, and how to free its disk space."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from repro.stored_runs import collect_garbage, find_run, remove_run, stored_runs

runs_app = typer.Typer(help="Trainings in the run store: states, sizes, removal.", no_args_is_help=True)
console = Console(highlight=False, soft_wrap=True)

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
