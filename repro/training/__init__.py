"""Training loops, replicas and the run store."""

from repro.training.run import Diverged, Run
from repro.training.run_store import RunConfig, RunResult, RunStore

__all__ = ["Diverged", "Run", "RunConfig", "RunResult", "RunStore"]
