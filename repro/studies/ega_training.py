"""The trainings of an EGA notebook without their evaluation: what `repro train ega` runs on one or many devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric

from repro.studies.ega import cell_name, trials_of, with_studies
from repro.training import RunStore


def train_trials(id: str, parameters: Mapping[str, Any], devices: int) -> None:
    """Train every trial of notebook `id` with every seed; finished ones are loaded.

    With several devices every process calls this, each batch is shared among them, and the first alone writes. The
    result does not depend on their number but for rounding, so the number is not part of a training's key.

    Raises:
        ValueError: `id` trains nothing, or `batch_size` cannot be shared evenly.
    """
    if devices > 1 and parameters["batch_size"] % devices:
        raise ValueError(f"batch_size {parameters['batch_size']} cannot be shared evenly by {devices} devices")
    fabric = make_fabric(devices, parameters["precision"])
    for trial, study in with_studies(trials_of(id, parameters), RunStore()):
        for seed in parameters["seeds"]:
            result = study.train(trial.settings, seed, fabric)
            fabric.barrier()
            state = "already trained" if result.reused else f"trained in {result.wall_seconds:.0f} s"
            fabric.print(f"{cell_name(trial.method, trial.setting)}, seed {seed}: {state} ({result.key})", flush=True)


def make_fabric(devices: int, precision: Any) -> Fabric:
    """A launched Fabric: GPUs where there are some, else CPU processes; DDP where there are several."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
