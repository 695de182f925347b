"""Rows of Table 2 and Figure 6 of DFG: accuracies by model choice, spreads, and verdicts from paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from repro.evidence.record import Row, Setting
from repro.evidence.statistics import Region, decide, paired_interval
from repro.studies.dfg import Study, StudySettings, Trained, prepare_study, train_replicas
from repro.training.run_store import RunStore
from repro.training.tasks import chosen_accuracies
from repro.vocabulary import DFGMethod, DFGTarget

METRICS = ("top1_accuracy", "macro_recall")
CONTROLS: tuple[DFGMethod, ...] = ("whole_transfer", "reweighting", "class_balanced")
"""On top of the paper's methods: all layers trained from the source, plainly and with two kinds of class weights."""
METHODS: tuple[DFGMethod, ...] = ("original", "fine_tuning", "delta", "difa_cmwgan", "dfg", *CONTROLS)
"""Everything that is trained for Table 2."""

LOSSES = {
    "critic": "critic (1)",
    "penalty": "gradient penalty in (1)",
    "generator": "generator (2)",
    "generator_classes": "generator on classes (4c)",
    "real": "E and C, real (3, 4a)",
    "regularizer": "DELTA regulariser",
    "generated": "C on generated (4b)",
}
"""Logged losses with the equations they are."""

Results = Mapping[str, Sequence[Trained]]


def accuracies(one: Trained, choice: str = "last") -> dict[str, float]:
    """Test metrics in % of one training under a model choice (`last`, `held_out`, `best_on_test`)."""
    chosen = chosen_accuracies(one.result.history, 0)[choice]
    return {metric: float(chosen[metric]) for metric in METRICS}


def loss_history(
    every: Sequence[Trained], classes: Sequence[str]
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Panels for `repro.report.plots.line_panels`: loss → training → values, and the steps they were logged at."""
    panels: dict[str, dict[str, list[float]]] = {}
    steps: list[float] = []
    for one in every:
        logged = [row for row in one.result.history if any("/loss/" in name for name in row)]
        steps = [row["step"] for row in logged]
        for name in (name for name in logged[0] if "/loss/" in name):
            majority = ", ".join(classes[c] for c in one.replica.majority[:3]) or "balanced"
            label = f"{majority}{' …' if len(one.replica.majority) > 3 else ''}, seed {one.replica.seed}"
            panels.setdefault(LOSSES.get(name.split("/")[-1], name), {})[label] = [row[name] for row in logged]
    return panels, steps


def accuracy_rows(study: Study, results: Results, setting: Setting) -> list[Row]:
    """Rows that stand for the printed cell of `setting`: one per method, class combination and metric, last iterate.

    `seed` is the position of the combination in the plan, so that methods are paired by it. Further rows, told apart
    by their setting: `majority` (2 or 8 classes alone), `model_choice` (chosen on held-out or on test images).
    """
    rows = []
    for method, every in results.items():
        for one in every:
            if one.replica.repeat:
                continue
            choices = chosen_accuracies(one.result.history, 0)
            for choice in choices:
                own: Setting = setting if choice == "last" else setting | {"model_choice": choice}
                rows += _rows(study, method, one, own, accuracies(one, choice))
            if one.replica.majority and len(study.settings.majorities) > 1:
                own = setting | {"majority": len(one.replica.majority)}
                rows += _rows(study, method, one, own, accuracies(one))
    return rows


def spread_rows(study: Study, results: Results, setting: Setting) -> list[Row]:
    """Standard deviations of the last iterate's accuracy, apart: over combinations (one seed) and over seeds."""
    rows = []
    for method, every in results.items():
        first = [one for one in every if one.replica.majority == every[0].replica.majority]
        groups = {"std_over_seeds": first}
        for majority in sorted({len(one.replica.majority) for one in every} - {0}):
            members = [one for one in every if len(one.replica.majority) == majority and not one.replica.repeat]
            groups[f"std_over_combinations_{majority}"] = members
        for metric, members in groups.items():
            if len(members) > 1:
                spread = stdev(accuracies(one)["top1_accuracy"] for one in members)
                rows.append(_row(study, method, metric, spread, None, setting, len(members)))
    return rows


def verdicts(results: Results, labels: Mapping[str, str], against: Sequence[str], better: str = "dfg") -> list[str]:
    """One sentence per claim "`better` is more accurate than …", decided by the paired interval alone."""

    def label(method: str) -> str:
        return labels.get(method, method.replace("_", " "))

    sentences = []
    for metric in METRICS:
        mine = _by_combination(results[better], metric)
        for other in (method for method in against if method in results):
            theirs = _by_combination(results[other], metric)
            difference = paired_interval(mine, theirs, over="seeds")
            verdict = decide(difference, Region(0))
            sentences.append(
                f"{label(better)} above {label(other)} in {metric.replace('_', ' ')}: "
                f"{verdict.word} (difference {difference.value:+.1f} points, 95 % interval {difference.low:+.1f} to "
                f"{difference.high:+.1f}, paired over n = {len(mine)} class combinations)."
            )
    return sentences


def rho_verdicts(by_rho: Mapping[float, Sequence[Trained]], best: float) -> list[str]:
    """One sentence per other ρ: is `best` more accurate, paired over combinations?"""
    named = {f"{rho:g}": every for rho, every in by_rho.items()}
    labels = {name: f"ρ = {name}" for name in named}
    found = verdicts(named, labels, [name for name in named if name != f"{best:g}"], f"{best:g}")
    return [sentence for sentence in found if "top1" in sentence]


def combination_table(study: Study, results: Results, labels: Mapping[str, str]) -> list[list[str]]:
    """Text rows: majority classes, seed, training images, then top-1 accuracy of every method."""
    counts = study.tasks.class_counts().sum(1).tolist()
    table = []
    for index, replica in enumerate(study.plan):
        found = [
            next((f"{accuracies(one)['top1_accuracy']:.1f}" for one in every if one.index == index), "–")
            for every in results.values()
        ]
        names = ", ".join(study.classes[c] for c in replica.majority) or "balanced"
        table.append([names, str(replica.seed), str(counts[index]), *found])
    return table


def _by_combination(every: Sequence[Trained], metric: str) -> list[float]:
    return [accuracies(one)[metric] for one in every if not one.replica.repeat or not one.replica.majority]


def _rows(study: Study, method: str, one: Trained, setting: Setting, values: Mapping[str, float]) -> list[Row]:
    count = len(study.test)
    return [_row(study, method, metric, value, one.index, setting, count) for metric, value in values.items()]


def _row(
    study: Study, method: str, metric: str, value: float, seed: int | None, setting: Setting, count: int
) -> Row:  # fmt: skip
    return Row(
        method=method,
        metric=metric,
        value=value,
        dataset=study.settings.target,
        network=study.protocol.architecture,
        seed=seed,
        setting=setting,
        n=count,
        unit="%" if metric in METRICS else "points",
    )


# The trainings of a DFG notebook by its id: what `repro train dfg` runs ahead of it, and `repro plan` predicts.

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
