"""The trainings of a DFG notebook by its id: what `repro train dfg` runs ahead of it, and `repro plan` predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repro.studies.dfg import StudySettings, prepare_study, train_replicas
from repro.studies.dfg_accuracy import METHODS
from repro.training import RunStore
from repro.vocabulary import DFGMethod, DFGTarget

FIRST = (0,)
MAPS_METHODS: tuple[DFGMethod, ...] = ("original", "fine_tuning", "delta", "dfg")
WEIGHTS_RHOS = (0.75, 0.0)


@dataclass(frozen=True)
class Wanted:
    """Trainings of one method: on all of a study's plan, or on some positions of it."""

    method: DFGMethod
    rho: float | None = None
    only: Sequence[int] | None = None


def wanted_of(id: str, parameters: Mapping[str, Any]) -> list[Wanted]:
    """What each notebook passes to `train_replicas`; nothing for those that train nothing."""
    name = id.removeprefix("dfg/")
    if name == "table2_accuracy":
        return [Wanted(method) for method in METHODS]
    if name == "fig2_feature_space":
        return [Wanted("dfg", only=FIRST)]
    if name == "fig3_fig4_activation_maps":
        return [Wanted(method, only=FIRST) for method in MAPS_METHODS]
    if name == "fig5_filter_weights":
        return [Wanted("dfg", rho, FIRST) for rho in WEIGHTS_RHOS]
    if name == "fig6_rho":
        return [Wanted("dfg", rho, range(parameters["used"])) for rho in parameters["rhos"]]
    return []


def targets_of(parameters: Mapping[str, Any]) -> list[DFGTarget]:
    """The data sets a notebook trains on; it names one or several."""
    return parameters.get("targets") or [parameters["target"]]


def train_wanted(id: str, parameters: Mapping[str, Any]) -> None:
    """Train everything notebook `id` needs; finished trainings are loaded.

    Raises:
        ValueError: `id` trains nothing.
    """
    if not wanted_of(id, parameters):
        raise ValueError(f"'{id}' trains nothing")
    store = RunStore()
    for target in targets_of(parameters):
        study = prepare_study(StudySettings.of(parameters, target), parameters["schedule"], store)
        for wanted in wanted_of(id, parameters):
            trained = train_replicas(
                study, wanted.method, store, rho=wanted.rho, only=_positions(wanted, len(study.plan))
            )
            new = [one for one in trained if not one.result.reused]
            print(f"{target}, {wanted.method}: {len(trained)} trainings, {len(new)} of them new", flush=True)


def _positions(wanted: Wanted, planned: int) -> Sequence[int] | None:
    return None if wanted.only is None else [position for position in wanted.only if position < planned]
