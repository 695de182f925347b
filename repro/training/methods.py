"""Every method of Table 2 and the two controls behind one function, and how many replicas of it to train at once."""

from typing import Literal

from torch import Tensor

from repro.models.split_classifier import SplitClassifier
from repro.training.baselines import SupervisedMethod, train_cmwgan, train_supervised
from repro.training.dfg import build_networks, dfg_draws, train_dfg, update_cycle
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import replicas_that_fit
from repro.training.run_store import Run
from repro.training.tasks import ReplicaTasks

Method = SupervisedMethod | Literal["difa_cmwgan", "dfg"]


def train_method(
    method: Method,
    source: SplitClassifier,
    tasks: ReplicaTasks,
    settings: DFGSettings,
    readings: DFGReadings,
    run: Run,
) -> dict[str, Tensor]:
    """Train R replicas with one method; see `train_dfg`, `train_cmwgan` and `train_supervised`."""
    if method == "dfg":
        return train_dfg(source, tasks, settings, readings, run)
    if method == "difa_cmwgan":
        return train_cmwgan(source, tasks, settings, readings, run)
    return train_supervised(method, source, tasks, settings, readings, run)


def replica_chunks(
    source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings, readings: DFGReadings
) -> list[ReplicaTasks]:
    """Split tasks into groups to be trained at once: single replicas on a CPU, as many as memory holds on CUDA.

    Memory is measured with one cycle of DFG, the most expensive method, so that every method uses the same groups.
    """

    def trial() -> None:
        one = tasks.select([0])
        nets = build_networks(source, one, settings, readings)
        draws = dfg_draws(one, settings, readings, nets.attention.star.dtype)
        draws.load(0)
        update_cycle(nets, draws, settings, readings)

    size = replicas_that_fit(tasks.replicas, trial, tasks.device)
    return [tasks.select(range(tasks.replicas)[start : start + size]) for start in range(0, tasks.replicas, size)]
