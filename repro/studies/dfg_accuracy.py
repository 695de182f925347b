"""Rows of Table 2 and Figure 6 of DFG: accuracies by model choice, spreads, and verdicts from paired intervals.

The `seed` of a row is the position of its training in the plan: a class combination, or a seed where the set is
balanced. Methods are paired by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev

from repro.evidence.decisions import Region, decide
from repro.evidence.record import Row, Setting
from repro.evidence.statistics import paired_interval
from repro.studies.dfg import Study, Trained
from repro.studies.rows import RowCollector
from repro.training.dfg import LOSSES
from repro.training.transfer import chosen_accuracies

METRICS = ("top1_accuracy", "macro_recall")
Results = Mapping[str, Sequence[Trained]]


def accuracies(one: Trained, choice: str = "last") -> dict[str, float]:
    """Test metrics in % of one training under a model choice of `chosen_accuracies`; {} where it has none."""
    chosen = chosen_accuracies(one.history, 0, one.real_updates).get(choice, {})
    return {metric: float(chosen[metric]) for metric in METRICS if chosen}


def loss_history(
    every: Sequence[Trained], classes: Sequence[str]
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Panels for `repro.report.plots.line_panels`: loss → training → values, and the steps they were logged at."""
    panels: dict[str, dict[str, list[float]]] = {}
    steps: list[float] = []
    for one in every:
        logged = [row for row in one.history if any("/loss/" in name for name in row)]
        steps = [row["step"] for row in logged]
        for name in (name for name in logged[0] if "/loss/" in name):
            majority = ", ".join(classes[c] for c in one.replica.majority[:3]) or "balanced"
            label = f"{majority}{' …' if len(one.replica.majority) > 3 else ''}, seed {one.replica.seed}"
            panels.setdefault(LOSSES.get(name.split("/")[-1], name), {})[label] = [row[name] for row in logged]
    return panels, steps


def accuracy_rows(study: Study, results: Results, setting: Setting) -> list[Row]:
    """Rows that stand for the printed cell of `setting`: one per method, class combination and metric, last iterate.

    Further rows, told apart by their setting: `majority` (2 or 8 classes alone), `model_choice` (chosen on held-out or
    on test images, or after as many steps on real data as DFG takes), and under `varies: seed` the further seeds of the
    first combination with it.
    """
    found = RowCollector()

    def add(one: Trained, method: str, choice: str, **more: str | int) -> None:
        for metric, value in accuracies(one, choice).items():
            _add(found, study, method, metric, value, one.index, {**setting, **more}, len(study.test))

    for method, every in results.items():
        for one in every:
            if not one.replica.repeat:
                add(one, method, "last")
                for choice in ("best_on_test", "held_out", "equal_updates"):
                    add(one, method, choice, model_choice=choice)
                if one.replica.majority and len({len(replica.majority) for replica in study.plan}) > 1:
                    add(one, method, "last", majority=len(one.replica.majority))
        first = _seeds_of_first(every)
        for one in first if len(first) > 1 and study.plan[0].majority else []:
            add(one, method, "last", varies="seed")
    return found.rows


def spread_rows(study: Study, results: Results, setting: Setting) -> list[Row]:
    """Standard deviations of the last iterate's accuracy, apart: over combinations (one seed) and over seeds."""
    found = RowCollector()
    for method, every in results.items():
        groups = {"std_over_seeds": _seeds_of_first(every)}
        for majority in sorted({len(one.replica.majority) for one in every} - {0}):
            members = [one for one in every if len(one.replica.majority) == majority and not one.replica.repeat]
            groups[f"std_over_combinations_{majority}"] = members
        for metric, members in groups.items():
            if len(members) > 1:
                spread = stdev(accuracies(one)["top1_accuracy"] for one in members)
                _add(found, study, method, metric, spread, None, setting, len(members))
    return found.rows


def verdicts(results: Results, labels: Mapping[str, str], against: Sequence[str], better: str = "dfg") -> list[str]:
    """One sentence per claim "`better` is more accurate than …", decided by the paired interval alone."""
    sentences = []
    for metric in METRICS:
        mine = _independent(results[better], metric)
        for other in (method for method in against if method in results):
            difference = paired_interval(mine, _independent(results[other], metric), over="seeds")
            verdict = decide(difference, Region(0))
            what = "class combinations" if results[better][0].replica.majority else "seeds"
            sentences.append(
                f"{_label(better, labels)} above {_label(other, labels)} in {metric.replace('_', ' ')}: "
                f"{verdict.word} (difference {difference.value:+.1f} points, 95 % interval {difference.low:+.1f} to "
                f"{difference.high:+.1f}, paired over n = {len(mine)} {what})."
            )
    return sentences


def rho_verdicts(by_rho: Mapping[float, Sequence[Trained]], best: float) -> list[str]:
    """One sentence per other ρ: is `best` more accurate, paired over combinations?"""
    named = {f"{rho:g}": every for rho, every in by_rho.items()}
    labels = {name: f"ρ = {name}" for name in named}
    found = verdicts(named, labels, [name for name in named if name != f"{best:g}"], f"{best:g}")
    return [sentence for sentence in found if "top1" in sentence]


def combination_table(study: Study, results: Results) -> list[list[str]]:
    """Text rows: majority classes, seed, training images, then top-1 accuracy of every method."""
    table = []
    for index, replica in enumerate(study.plan):
        found = [
            next((f"{accuracies(one)['top1_accuracy']:.1f}" for one in every if one.index == index), "–")
            for every in results.values()
        ]
        names = ", ".join(study.classes[c] for c in replica.majority) or "balanced"
        table.append([names, str(replica.seed), str(len(study.subset(replica)[0])), *found])
    return table


def _label(method: str, labels: Mapping[str, str]) -> str:
    return labels.get(method, method.replace("_", " "))


def _seeds_of_first(every: Sequence[Trained]) -> list[Trained]:
    return [one for one in every if one.replica.majority == every[0].replica.majority]


def _independent(every: Sequence[Trained], metric: str) -> list[float]:
    """One value per class combination, or per seed where the set is balanced."""
    return [accuracies(one)[metric] for one in every if not one.replica.repeat]


def _add(
    found: RowCollector,
    study: Study,
    method: str,
    metric: str,
    value: float,
    index: int | None,
    setting: Setting,
    n: int,
) -> None:
    unit = "%" if metric in METRICS else "points"
    target, network = study.settings.target, study.protocol.architecture
    found.add(method, metric, value, dataset=target, network=network, seed=index, setting=setting, n=n, unit=unit)
