"""`repro train`: the trainings of a notebook ahead of it, through the run store; EGA's on any number of devices."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Any

import typer

from repro.catalogue import PRESETS, Preset, Table, nearest
from repro.errors import UserError

train_app = typer.Typer(help="Train what a notebook needs, ahead of it and on several devices.", no_args_is_help=True)


TableName = Annotated[str, typer.Argument(metavar="TABLE", help="notebook, e.g. table6_components")]
PresetOption = Annotated[str, typer.Option("--preset", "-p", help="smoke, quick or paper")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="replace one parameter")]
Devices = Annotated[int, typer.Option("--devices", "-d", min=1, help="devices (GPUs, or CPU processes)")]


@train_app.command("ega")
def train_ega_tables(
    table: TableName, preset: PresetOption = "paper", set_: Assignments = None, devices: Devices = 1
) -> None:
    """Train every network that notebook TABLE of EGA needs under a preset; finished trainings are not repeated.

    The notebook run afterwards finds them in the run store. An interrupted command continues where it was.
    """
    if devices > 1 and not _launched():
        raise typer.Exit(_torchrun(devices))
    values = _values(f"ega/{table}", preset, set_)
    from repro.studies.ega_training import train_trials

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
    from repro.studies.dfg_training import train_wanted

    train_wanted(f"dfg/{table}", values)


def _values(id: str, preset: str, assignments: list[str] | None) -> dict[str, Any]:
    from repro.parameters import parse_assignment, preset_values

    overrides: dict[str, Any] = dict(parse_assignment(text) for text in assignments or [])
    return preset_values(Table(id), _preset(preset), overrides)


def _preset(given: str) -> Preset:
    for preset in PRESETS:
        if preset == given:
            return preset
    raise UserError(f"--preset {given}: {nearest(given, PRESETS)} (allowed: {', '.join(PRESETS)})")


def _launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _torchrun(devices: int) -> int:
    """This very command once per device; status of the first that failed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    return subprocess.run([*launcher, "-m", "repro.cli", *sys.argv[1:]], check=False).returncode
