"""Sentences of the EGA notebooks, each decided by a paired interval and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from repro.catalogue import Preset
from repro.evidence.estimate import Estimate
from repro.evidence.intervals import Floats, Over, paired_interval
from repro.studies.ega import Measured, Outcome
from repro.studies.localised import MetricPolicy

LABELS = {
    "top1_cls_error": "Top-1 classification error",
    "top1_loc_error": "Top-1 localisation error",
    "corloc_error": "CorLoc error",
    "max_box_acc_v2_error": "MaxBoxAccV2 error",
    "pxap_error": "PxAP error",
}


def difference(first: Outcome, second: Outcome, metric: str, policy: MetricPolicy) -> Estimate:
    """Error of `first` minus that of `second` in points, with a 95 % interval.

    Paired over the images, and over the seeds where there are several; over seeds alone for PxAP, which is no mean over
    images.
    """
    one, other, over = paired_values(first, second, metric, policy)
    return paired_interval(one, other, over)


def paired_values(first: Outcome, second: Outcome, metric: str, policy: MetricPolicy) -> tuple[Floats, Floats, Over]:
    """Errors of two outcomes entry by entry, and what they are matched over; see `difference`."""
    scores = [[found.score(metric, policy) for found in outcome.found] for outcome in (first, second)]
    if any(score.samples is None for score in scores[0]):
        one, other = (np.array([score.value for score in column]) for column in scores)
        return one, other, "seeds"
    one, other = (np.array([score.samples for score in column]) for column in scores)
    return (one[0], other[0], "images") if len(one) == 1 else (one, other, "seeds and images")


def contrast_sentence(
    claim: str, first: Outcome, second: Outcome, metric: str, policy: MetricPolicy, preset: Preset
) -> str:
    """Whether `claim`, that `first` has a lower error than `second`, appears in our data."""
    found = difference(first, second, metric, policy)
    seeds, images = len(first.found), len(first.found[0].correct)
    if preset == "smoke":
        outcome = "a smoke run decides nothing"
    elif found.high < 0:
        outcome = "appears in our data"
    elif found.low > 0:
        outcome = "is contradicted by our data"
    else:
        outcome = "is not decided by our data"
    spread = (
        f"95 % interval {found.low:+.1f} to {found.high:+.1f}" if np.isfinite(found.low) else "one seed, no interval"
    )
    return (
        f"{claim}: {outcome}. {LABELS[metric]} differs by {found.value:+.1f} points ({spread}; "
        f"{seeds} seed{'s' if seeds > 1 else ''}, {images} images, {first.trial.study.dataset})."
    )


def find_outcome(outcomes: Sequence[Outcome], method: str, **setting: object) -> Outcome:
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


def component_sentences(outcomes: Sequence[Outcome], policy: MetricPolicy, preset: Preset) -> list[str]:
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


def reading_sentences(outcomes: Sequence[Outcome], policy: MetricPolicy, preset: Preset) -> list[str]:
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


def gain_sentences(outcomes: Sequence[Outcome], metric: str, policy: MetricPolicy, preset: Preset) -> list[str]:
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
    outcomes: Sequence[Outcome], reference: Outcome, metrics: Sequence[str], policy: MetricPolicy, preset: Preset
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


def threshold_sentences(measured: Measured) -> list[str]:
    """The τ that was used, per method and metric."""
    return [
        f"τ of {name}: {min(used):.2f}" + (f" to {max(used):.2f}" if max(used) > min(used) else "")
        for name, used in measured.thresholds.items()
    ]


def _column(setting: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in setting.items())
