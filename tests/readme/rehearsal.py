"""Runs `repro ARGUMENTS` as far as the decision what to run: `python rehearsal.py run ega --preset paper`.

Arguments, ids, presets and parameter files go through the real command; the functions that would then spend hours are
replaced by ones that print what they were given.
"""

import os
import sys
from typing import Any

import repro.batch.cluster
import repro.batch.runner
import repro.cli
import repro.studies.ega

os.environ["TORCHELASTIC_RUN_ID"] = "rehearsal"  # so that `repro train --devices 2` validates instead of launching


def show_jobs(jobs: Any, *_: Any, **__: Any) -> int:
    """Stands for running the jobs."""
    for job in jobs:
        print(f"would run {job.table.id} {job.preset} {len(job.parameters)} parameters")
    return 0


def show_training(id: str, values: dict[str, Any], devices: int) -> None:
    """Stands for training."""
    print(f"would train {id} {values['preset']} {len(values)} parameters on {devices} devices")


repro.batch.runner.run_and_report = show_jobs
repro.batch.cluster.run_on_cluster = show_jobs
repro.studies.ega.train_trials = show_training
sys.argv[0] = "repro"
repro.cli.main()
