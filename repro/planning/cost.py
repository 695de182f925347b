"""From a few timed steps to the cost of all of them, with an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from repro.planning.sampled_run import Loop

MARGIN = 0.3
"""The interval's ends are divided and multiplied by 1.3 for what a few steps on synthetic images do not show."""

ANALYSIS_SECONDS = 5.0
"""Added to the upper end, for what a notebook does with its numbers; it decides only where the rest takes seconds."""

MODEL = (
    "Interval: 95 % t interval of the mean step time of every kind of step, times the number of such steps, all "
    "errors taken as falling the same way; then a further 30 % to either side for what a few steps on synthetic images "
    "do not show (reading files, other users, clock speed), and 5 s at the upper end for statistics and projections. "
    "Those 30 % and 5 s are judgements, not measurements."
)


@dataclass(frozen=True)
class Cost:
    """Seconds of some work and how far off its mean may be (half width of the t interval)."""

    seconds: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end of the interval, margin included."""
        return max(0.0, self.seconds - self.half_width) / (1 + MARGIN)

    @property
    def high(self) -> float:
        """Upper end of the interval, margin included."""
        return (self.seconds + self.half_width) * (1 + MARGIN) + ANALYSIS_SECONDS

    def times(self, factor: float) -> Cost:
        """The same work `factor` times, its error growing in proportion."""
        return Cost(self.seconds * factor, self.half_width * factor)


def total(costs: Iterable[Cost]) -> Cost:
    """Sum of costs, errors added up rather than in quadrature: a machine that is slow is slow throughout."""
    found = list(costs)
    return Cost(sum(cost.seconds for cost in found), sum(cost.half_width for cost in found))


def cost_of(loop: Loop) -> Cost:
    """A loop's cost: its first step, and for each kind the number of steps times their mean.

    A kind with a single timing takes the largest relative error of the loop's other kinds, or its whole mean.
    """
    means = {kind: float(np.mean(values)) for kind, values in loop.seconds.items()}
    errors = {kind: _half_width(values) / means[kind] for kind, values in loop.seconds.items() if len(values) > 1}
    unknown = max(errors.values(), default=1.0)
    parts = [
        Cost(means[kind] * count, means[kind] * count * errors.get(kind, unknown))
        for kind, count in loop.counts.items()
        if count and kind in means
    ]
    return total([Cost(loop.first, 0.0), *parts])


def _half_width(values: list[float]) -> float:
    """Of the 95 % t interval of a mean."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
