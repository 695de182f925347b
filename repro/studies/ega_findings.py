"""Sentences of the EGA notebooks, each decided by a paired interval and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from repro.catalogue import Preset
from repro.evidence.decisions import Region, Verdict, decide, holm, multiple_comparison_note
from repro.evidence.published import smallest_effect
from repro.evidence.statistics import (
    Estimate,
    Floats,
    Over,
    image_interval,
    mean_interval,
    paired_interval,
    with_doubt,
)
from repro.studies.ega import EvaluatedTrial, cell_name
from repro.studies.localised import MetricPolicy

LABELS = {
    "top1_cls_error": "Top-1 classification error",
    "top1_loc_error": "Top-1 localisation error",
    "corloc_error": "CorLoc error",
    "max_box_acc_v2_error": "MaxBoxAccV2 error",
    "pxap_error": "PxAP error",
}


def difference(first: EvaluatedTrial, second: EvaluatedTrial, metric: str, policy: MetricPolicy) -> Estimate:
    """Error of `first` minus that of `second` in points, with a 95 % interval.

    Paired over the images, and over the seeds where there are several; over seeds alone for PxAP, which is no mean over
    images.
    """
    one, other, over = paired_values(first, second, metric, policy)
    return paired_interval(one, other, over)


def paired_values(
    first: EvaluatedTrial, second: EvaluatedTrial, metric: str, policy: MetricPolicy
) -> tuple[Floats, Floats, Over]:
    """Errors of two outcomes entry by entry, and what they are matched over; see `difference`."""
    scores = [[found.score(metric, policy) for found in outcome.found] for outcome in (first, second)]
    if any(score.samples is None for score in scores[0]):
        one, other = (np.array([score.value for score in column]) for column in scores)
        return one, other, "seeds"
    one, other = (np.array([score.samples for score in column]) for column in scores)
    return (one[0], other[0], "images") if len(one) == 1 else (one, other, "seeds and images")


_OUTCOMES = {
    Verdict.supported: "appears in our data",
    Verdict.contradicted: "is contradicted by our data",
    Verdict.inconclusive: "is not decided by our data",
}


def contrast_sentence(
    claim: str, first: EvaluatedTrial, second: EvaluatedTrial, metric: str, policy: MetricPolicy, preset: Preset
) -> str:
    """Whether `claim`, that `first` has a lower error than `second`, appears in our data."""
    found = difference(first, second, metric, policy)
    seeds, images = len(first.found), len(first.found[0].correct)
    outcome = "a smoke run decides nothing"
    if preset != "smoke":
        advantage = with_doubt(difference(second, first, metric, policy), "one training" if seeds == 1 else "")
        outcome = _OUTCOMES[decide(advantage, Region(0, matters=smallest_effect(metric)))]
    return (
        f"{claim}: {outcome}. {LABELS[metric]} differs by {found.value:+.1f} points ({_spread(found)}; "
        f"{seeds} seed{'s' if seeds > 1 else ''}, {images} images, {first.trial.study.dataset})."
    )


def find_outcome(outcomes: Sequence[EvaluatedTrial], method: str, **setting: object) -> EvaluatedTrial:
    """The first outcome of a method whose setting has these values and, unless asked for, no reading.

    Raises:
        ValueError: there is none.
    """
    for outcome in outcomes:
        own = outcome.trial.setting
        fits = all(own.get(name) == value for name, value in setting.items())
        if outcome.trial.method == method and fits and own.get("reading") == setting.get("reading"):
            return outcome
    raise ValueError(f"no trial of method '{method}' with {setting or 'the paper reading'} was run")


def component_sentences(outcomes: Sequence[EvaluatedTrial], policy: MetricPolicy, preset: Preset) -> list[str]:
    """The paper's three claims on every network of Table 6: examples, entropy, and both together."""
    sentences = []
    for network in dict.fromkeys(outcome.trial.setting["network"] for outcome in outcomes):
        cam, adversarial, ega = (
            find_outcome(outcomes, method, network=network) for method in ("cam", "cam_adversarial", "ega")
        )
        for claim, first, second in (
            ("Claim 1, adversarial examples improve localisation over CAM", adversarial, cam),
            ("Claim 2, the entropy term improves localisation further", ega, adversarial),
            ("Claim 3, EGA as a whole localises better than CAM", ega, cam),
        ):
            sentences.append(contrast_sentence(claim, first, second, "top1_loc_error", policy, preset))
    return sentences


def reading_sentences(outcomes: Sequence[EvaluatedTrial], policy: MetricPolicy, preset: Preset) -> list[str]:
    """Each reading against the paper's EGA."""
    return [
        contrast_sentence(
            f"Reading '{outcome.trial.setting['reading']}' lowers the error of the paper's EGA",
            outcome,
            find_outcome(outcomes, "ega", network=outcome.trial.setting["network"]),
            "top1_loc_error",
            policy,
            preset,
        )
        for outcome in outcomes
        if "reading" in outcome.trial.setting
    ]


def gain_sentences(outcomes: Sequence[EvaluatedTrial], metric: str, policy: MetricPolicy, preset: Preset) -> list[str]:
    """EGA against CAM in every column of a table; τ is named unless it is the oracle's, the benchmark's rule."""
    words = policy.words()
    return [
        contrast_sentence(
            f"EGA is better than CAM ({_column(ega.trial.setting)}{words and f', {words}'})",
            ega,
            find_outcome(outcomes, "cam", **ega.trial.setting),
            metric,
            policy,
            preset,
        )
        for ega in outcomes
        if ega.trial.method == "ega"
    ]


def series_sentences(
    outcomes: Sequence[EvaluatedTrial],
    reference: EvaluatedTrial,
    metrics: Sequence[str],
    policy: MetricPolicy,
    preset: Preset,
) -> list[str]:
    """A reference against every other setting of a series (Table 7, Fig. 7)."""
    return [
        contrast_sentence(
            f"{_column(reference.trial.setting)} beats {_column(other.trial.setting) or other.trial.method}",
            reference,
            other,
            metric,
            policy,
            preset,
        )
        for other in outcomes
        if other.trial != reference.trial and other.trial.study == reference.trial.study
        for metric in metrics
    ]


def threshold_sentences(outcomes: Sequence[EvaluatedTrial], metrics: Sequence[str], policy: MetricPolicy) -> list[str]:
    """The τ that was used, per trial and metric, over seeds and IoUs."""
    sentences = []
    for outcome in outcomes:
        for metric in metrics:
            used = [tau for found in outcome.found for tau in found.score(metric, policy).thresholds]
            if used:
                spread = f" to {max(used):.2f}" if max(used) > min(used) else ""
                name = cell_name(outcome.trial.method, outcome.trial.setting)
                sentences.append(f"τ of {name}, {metric}: {min(used):.2f}{spread}")
    return sentences


def _spread(found: Estimate) -> str:
    return f"95 % interval {found.low:+.1f} to {found.high:+.1f}" if found.bounded else found.method


def _column(setting: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in setting.items())


# Which methods are really different: all pairs of a column under one evaluator, corrected for their number.

LEVEL = 0.95
Pair = tuple[str, EvaluatedTrial, EvaluatedTrial]
"""A name, and the two outcomes whose errors are subtracted."""
Place = tuple[str, str | None]
"""A method, and the reading of it."""

_PARTS: tuple[tuple[str, Place, Place], ...] = (
    ("Adversarial examples with dual batch norm, over plain CAM", ("cam_adversarial", None), ("cam", None)),
    ("Dual instead of shared batch norm, within EGA", ("ega", None), ("ega", "shared_batch_norm")),
    ("The entropy term, over adversarial examples alone", ("ega", None), ("cam_adversarial", None)),
    ("All of EGA, over plain CAM", ("ega", None), ("cam", None)),
)


@dataclass(frozen=True)
class Contrast:
    """One paired comparison among several."""

    name: str
    first: str
    second: str
    difference: Estimate
    """Error of the first method minus that of the second, in points."""
    p: float
    adjusted: float
    """Holm's p over all comparisons made together."""

    @property
    def differs(self) -> bool:
        """Whether the two are really different: the family-wise error rate is held at 5 %."""
        return self.adjusted < 1 - LEVEL


@dataclass(frozen=True)
class Ranking:
    """Methods by their mean error, and which pairs of them differ."""

    metric: str
    preset: Preset
    methods: tuple[str, ...]
    """Best first."""
    errors: tuple[Estimate, ...]
    """In the order of `methods`: over seeds, or over images where there is one seed."""
    pairs: tuple[Contrast, ...]
    """Every pair once, the method with the lower mean first."""

    @property
    def by_method(self) -> dict[str, Estimate]:
        """Mean errors, best first."""
        return dict(zip(self.methods, self.errors, strict=True))

    def beaten_by(self, method: str) -> list[str]:
        """Methods that are really better than `method`."""
        return [pair.first for pair in self.pairs if pair.differs and pair.second == method]

    def better_than(self, method: str) -> list[str]:
        """Methods that are really worse than `method`."""
        return [pair.second for pair in self.pairs if pair.differs and pair.first == method]

    def rank_interval(self, method: str) -> tuple[int, int]:
        """Best and worst rank that the pairs leave open: only methods that really differ are put in order."""
        return 1 + len(self.beaten_by(method)), len(self.methods) - len(self.better_than(method))

    def letters(self) -> tuple[str, ...]:
        """Letters per method, in order; methods that share one cannot be told apart (compact letter display).

        Every largest set of methods without a differing pair has a letter, as in Piepho (J. Comp. Graph. Stat. 2004).
        A smoke run decides nothing and has no letters.
        """
        if self.preset == "smoke":
            return ("",) * len(self.methods)
        groups = _cliques(self.methods, {frozenset((pair.first, pair.second)) for pair in self.pairs if pair.differs})
        return tuple(
            "".join(chr(ord("a") + index) for index, group in enumerate(groups) if method in group)
            for method in self.methods
        )


def rank(outcomes: Sequence[EvaluatedTrial], metric: str, policy: MetricPolicy, preset: Preset) -> Ranking:
    """Order methods by their mean error and compare every pair, paired over the same seeds and images.

    Args:
        outcomes: one per method, all of one column of a table.
        metric: as `Localised.score` takes it; lower is better.
        policy: the same for all.
        preset: a smoke run decides nothing.

    Raises:
        ValueError: fewer than two outcomes, a method twice, or other seeds or images than the others have.
    """
    _check(outcomes)
    estimates = {outcome.trial.method: _error(outcome, metric, policy) for outcome in outcomes}
    order = sorted(outcomes, key=lambda outcome: estimates[outcome.trial.method].value)
    pairs = [("", first, second) for first, second in combinations(order, 2)]
    methods = tuple(outcome.trial.method for outcome in order)
    found = tuple(estimates[method] for method in methods)
    return Ranking(metric, preset, methods, found, tuple(contrasts(pairs, metric, policy)))


def rank_columns(
    outcomes: Sequence[EvaluatedTrial], metric: str, policy: MetricPolicy, preset: Preset
) -> dict[str, Ranking]:
    """One ranking per printed column (network or data set) with two methods or more; readings are left out."""
    columns: dict[str, list[EvaluatedTrial]] = {}
    for outcome in outcomes:
        if "reading" not in outcome.trial.setting:
            columns.setdefault(", ".join(str(value) for value in outcome.trial.setting.values()), []).append(outcome)
    return {name: rank(found, metric, policy, preset) for name, found in columns.items() if len(found) > 1}


def contrasts(pairs: Sequence[Pair], metric: str, policy: MetricPolicy) -> list[Contrast]:
    """Paired differences with Holm's correction over all of `pairs`."""
    found = [difference(first, second, metric, policy) for _, first, second in pairs]
    raw = [one.p_value() for one in found]
    return [
        Contrast(name, first.trial.method, second.trial.method, one, p, adjusted)
        for (name, first, second), one, p, adjusted in zip(pairs, found, raw, holm(raw).tolist(), strict=True)
    ]


def ranking_sentences(ranking: Ranking) -> list[str]:
    """The order, which pairs really differ, and where EGA stands."""
    label = LABELS[ranking.metric]
    listed = ", ".join(f"{method} {error.value:.1f}" for method, error in ranking.by_method.items())
    sentences = [f"{label} from best to worst mean (in %): {listed}."]
    if ranking.preset == "smoke":
        return [*sentences, "Which pairs are really different: a smoke run decides nothing."]
    sentences.append(f"{label}: {multiple_comparison_note([pair.p for pair in ranking.pairs])}")
    sentences += [
        f"{method} has a really lower error than {', '.join(worse)}."
        for method in ranking.methods
        if (worse := ranking.better_than(method))
    ]
    if "ega" in ranking.methods:
        best, worst = ranking.rank_interval("ega")
        place = f"rank {best}" if best == worst else f"a rank between {best} and {worst}"
        sentences.append(
            f"EGA is number {ranking.methods.index('ega') + 1} of {len(ranking.methods)} by its mean; "
            f"the pairs that really differ leave it {place}."
        )
    return sentences


def contribution_sentences(
    outcomes: Sequence[EvaluatedTrial], metric: str, policy: MetricPolicy, preset: Preset, **setting: object
) -> list[str]:
    """What adversarial examples, dual batch norm and entropy each add over plain CAM, corrected for their number.

    Only the parts whose trials were run are named: dual batch norm needs the reading `shared_batch_norm` of EGA.
    """
    pairs = [
        (name, first, second)
        for name, one, other in _PARTS
        if (first := _found(outcomes, one, setting)) and (second := _found(outcomes, other, setting))
    ]
    if not pairs:
        return []
    return [_contribution(found, metric, preset, len(pairs)) for found in contrasts(pairs, metric, policy)]


def _contribution(found: Contrast, metric: str, preset: Preset, family: int) -> str:
    change = found.difference
    if preset == "smoke":
        outcome = "a smoke run decides nothing"
    elif found.differs:
        outcome = "lowers the error" if change.value < 0 else "raises the error"
    else:
        outcome = "makes no difference that these seeds can show"
    detail = f"{_spread(change)}; p = {found.adjusted:.2g} after Holm's correction for {family}"
    return f"{found.name}: {outcome}. {LABELS[metric]} changes by {change.value:+.1f} points ({detail})."


def _found(outcomes: Sequence[EvaluatedTrial], place: Place, setting: Mapping[str, object]) -> EvaluatedTrial | None:
    method, reading = place
    wanted = setting if reading is None else {**setting, "reading": reading}
    try:
        return find_outcome(outcomes, method, **wanted)
    except ValueError:
        return None


def _error(outcome: EvaluatedTrial, metric: str, policy: MetricPolicy) -> Estimate:
    scores = [found.score(metric, policy) for found in outcome.found]
    if len(scores) == 1 and scores[0].samples is not None:
        return image_interval(scores[0].samples)
    return mean_interval([score.value for score in scores])


def _check(outcomes: Sequence[EvaluatedTrial]) -> None:
    methods = [outcome.trial.method for outcome in outcomes]
    if len(outcomes) < 2 or len(set(methods)) < len(methods):
        raise ValueError(f"a ranking needs two or more outcomes of different methods, got {methods}")
    first = outcomes[0]
    for other in outcomes[1:]:
        if [found.seed for found in other.found] != [found.seed for found in first.found]:
            raise ValueError(
                f"{other.trial.method} has other seeds than {first.trial.method}; train both with the same"
            )
        if other.study.images.test.manifest != first.study.images.test.manifest:
            raise ValueError(f"{other.trial.method} was evaluated on other images than {first.trial.method}")


def _cliques(methods: Sequence[str], apart: set[frozenset[str]]) -> list[list[str]]:
    """Every largest set of methods without a pair in `apart`, the one with the best method first (Bron–Kerbosch)."""
    together = {
        method: {other for other in methods if other != method and frozenset((method, other)) not in apart}
        for method in methods
    }
    found: list[list[str]] = []

    def extend(chosen: set[str], candidates: set[str], excluded: set[str]) -> None:
        if not candidates and not excluded:
            found.append(sorted(chosen, key=methods.index))
        for method in sorted(candidates, key=methods.index):
            extend(chosen | {method}, candidates & together[method], excluded & together[method])
            candidates, excluded = candidates - {method}, excluded | {method}

    extend(set(), set(methods), set())
    return sorted(found, key=lambda group: [methods.index(method) for method in group])
