"""What an interval says about a claim: five verdicts, the one rule, corrections, and what would settle a question."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from repro.evidence.statistics import LEVEL, Estimate, Floats, finite_array


class Verdict(StrEnum):
    """The five things a run can say about a claim; shown as symbol and word, never by colour alone."""

    supported = "supported"
    """The whole interval lies where the claim puts it."""
    contradicted = "contradicted"
    """The whole interval lies where the claim says it does not."""
    inconclusive = "inconclusive"
    """The interval lies on both sides, touches the boundary, must not decide, or the effect is too small to matter."""
    not_comparable = "not_comparable"
    """The run differs from the paper's in data, network or size; the difference list says how."""
    not_run = "not_run"
    """No record holds the rows the claim needs."""

    @property
    def symbol(self) -> str:
        """One character, distinct in shape for each verdict."""
        return _SYMBOLS[self]

    @property
    def word(self) -> str:
        """The verdict as a reader says it, e.g. "not comparable"."""
        return self.value.replace("_", " ")

    @property
    def label(self) -> str:
        """Symbol and word together, e.g. "✓ supported"."""
        return f"{self.symbol} {self.word}"


_SYMBOLS = {
    Verdict.supported: "✓",
    Verdict.contradicted: "✗",
    Verdict.inconclusive: "?",
    Verdict.not_comparable: "≠",
    Verdict.not_run: "–",
}


@dataclass(frozen=True)
class Region:
    """Where a claim puts a quantity: `low < quantity < high`; `matters` is the smallest effect worth the word.

    An ordering is (margin, ∞), a quoted number printed ± (rounding + tolerance).
    """

    low: float
    high: float = math.inf
    matters: float = 0.0

    def distance(self, value: float) -> float:
        """From a value to the nearest boundary."""
        return min(abs(value - end) for end in (self.low, self.high))


def decide(estimate: Estimate, region: Region, parts: int = 1) -> Verdict:
    """The verdict of an interval on "the quantity lies in `region`", as one of `parts` that must all hold.

    Supported if the whole 95 % interval lies inside: all parts must, so that no correction is needed (intersection–
    union test; for two boundaries it is Schuirmann's equivalence test, 1987). Contradicted if the interval that leaves
    2.5 % / `parts` on either side lies wholly outside: one part is enough to contradict, hence Bonferroni's correction.
    Both ways the value must be at least `region.matters` from the boundary. An interval that touches a boundary, or
    that carries a doubt, decides nothing.
    """
    if parts < 1:
        raise ValueError(f"parts is {parts}: expected how many comparisons must all hold, at least 1")
    if estimate.doubt or region.distance(estimate.value) < region.matters:
        return Verdict.inconclusive
    if region.low < estimate.low and estimate.high < region.high:
        return Verdict.supported
    low, high = estimate.ends((1 - LEVEL) / 2 / parts)
    if high < region.low or low > region.high:
        return Verdict.contradicted
    return Verdict.inconclusive


# Many comparisons at once.


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p values (Scand. J. Statistics 6, 1979), in the order given; (m,) to (m,).

    Rejecting those below α keeps the chance of even one false rejection below α under any dependence.
    Raises `ValueError` for values outside [0, 1].
    """
    p = finite_array("p_values", p_values, ndim=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values span [{p.min()}, {p.max()}]: expected probabilities between 0 and 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def multiple_comparison_note(p_values: Sequence[float]) -> str:
    """One sentence on how many of m comparisons stand alone, by chance, and after Holm's correction."""
    p = finite_array("p_values", p_values, ndim=1)
    alpha = 1 - LEVEL
    plain, corrected = int(np.sum(p < alpha)), int(np.sum(holm(p) < alpha))
    return (
        f"Of {len(p)} distinct comparison{'s' * (len(p) != 1)} at the {100 * LEVEL:g} % level, {plain} "
        f"exclude{'s' * (plain == 1)} zero "
        f"(about {alpha * len(p):.1f} would by chance alone if nothing differed); "
        f"after Holm's correction {corrected} remain{'s' * (corrected == 1)}."
    )


# What would settle an open question, by the model that left it open.

_POWER = 0.8
_BEYOND_REACH = 1_000_000


@dataclass(frozen=True)
class Plan:
    """Units in all with which an open question would be settled with 80 % probability, if the effect is as seen so far.

    None where more of that unit alone cannot do it.
    """

    seeds: int | None
    images: int | None


def plan(estimate: Estimate, region: Region, parts: int = 1) -> Plan:
    """Seeds (with the same images), or images (with the same seeds), that would settle an undecided question.

    Solves (t + z)² · [seed / S + (image + rest / S) / I] <= distance², where t belongs to the tail that the requirement
    is judged by: 2.5 % to support it, 2.5 % / `parts` to contradict it.
    """
    spread, distance = estimate.spread, region.distance(estimate.value)
    if spread is None or distance == 0 or distance < region.matters:
        return Plan(None, None)
    inside = region.low < estimate.value < region.high
    tail = (1 - LEVEL) / 2 / (1 if inside else parts)
    power = float(stats.norm.ppf(_POWER))

    def settles(seeds: int, images: int | None) -> bool:
        freedom = seeds - 1 if spread.seed > 0 else (images or 2) - 1
        quantile = float(stats.t.ppf(1 - tail, max(freedom, 1))) + power
        variance = spread.seed / seeds
        if images is not None:
            variance += (spread.image + spread.rest / seeds) / images
        return quantile**2 * variance <= distance**2

    # With seeds alone in play (no values per image), images cannot be planned; with one network, seeds cannot.
    more_seeds = _fewest(lambda n: settles(n, spread.images), spread.seeds + 1) if spread.seeds > 1 else None
    more_images = None
    if spread.images is not None:
        more_images = _fewest(lambda n: settles(spread.seeds, n), spread.images + 1)
    return Plan(more_seeds, more_images)


def _fewest(settles: Callable[[int], bool], start: int) -> int | None:
    """Smallest count from `start` on that settles; None if a million does not. `settles` must stay true once true."""
    low, high = start, start
    while not settles(high):
        low, high = high + 1, 2 * high
        if high > _BEYOND_REACH:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settles(middle) else (middle + 1, high)
    return low
