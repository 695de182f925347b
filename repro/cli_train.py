"""`repro train ega`: the trainings of a notebook, on any number of devices, through the run store."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Any

import typer

from repro.catalogue import PRESETS, Preset, Table, nearest
from repro.errors import UserError

train_app = typer.Typer(help="Train what a notebook needs, ahead of it and on several devices.", no_args_is_help=True)


@train_app.callback()
def _group() -> None:
    """Keep `ega` a sub-command although it is the only one."""


@train_app.command("ega")
def train_ega_tables(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="notebook, e.g. table6_components")],
    preset: Annotated[str, typer.Option("--preset", "-p", help="smoke, quick or paper")] = "paper",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="replace one parameter")] = None,
    devices: Annotated[int, typer.Option("--devices", "-d", min=1, help="devices (GPUs, or CPU processes)")] = 1,
) -> None:
    """Train every network that notebook TABLE of EGA needs under a preset; finished trainings are not repeated.

    The notebook run afterwards finds them in the run store. An interrupted command continues where it was.
    """
    if devices > 1 and not _launched():
        raise typer.Exit(_torchrun(devices))
    from repro.parameters import parse_assignment, preset_values

    overrides: dict[str, Any] = dict(parse_assignment(text) for text in set_ or [])
    values = preset_values(Table(f"ega/{table}"), _preset(preset), overrides)
    from repro.studies.ega_training import train_trials

    train_trials(f"ega/{table}", values, devices)


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
