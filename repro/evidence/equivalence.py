"""Does a run match the paper's value? Equivalence, not the mere absence of a significant difference."""

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from repro.evidence.checks import check_level, finite_array
from repro.evidence.estimate import Estimate
from repro.evidence.intervals import mean_interval
from repro.evidence.verdicts import Verdict


@dataclass(frozen=True)
class Equivalence:
    """Outcome of `equivalence_test`: the verdict, the region it was judged against and our interval.

    `region_low` … `region_high` is the published value ± (rounding + margin). `p_value` is the larger of the
    two one-sided tests, or None where only an interval was given.
    """

    verdict: Verdict
    ours: Estimate
    published: float
    margin: float
    rounding: float
    region_low: float
    region_high: float
    p_value: float | None

    @property
    def sentence(self) -> str:
        """One sentence that states margin, rounding, interval and verdict."""
        return (
            f"{self.verdict.label}: ours {self.ours.value:.4g} [{self.ours.low:.4g}, {self.ours.high:.4g}] "
            f"(n = {self.ours.n}) against {self.published:g} ± {self.margin:g} (margin) "
            f"± {self.rounding:g} (rounding)"
        )


def rounding_half_width(printed: str) -> float:
    """Half a unit in the last printed place: "46.3" means 46.25–46.35, so 0.05; "46" gives 0.5.

    Raises `ValueError` for text that is not a plain number.
    """
    try:
        exponent = Decimal(printed.strip()).as_tuple().exponent
    except InvalidOperation as error:
        raise ValueError(f"printed is {printed!r}: expected a number as it stands in the paper, e.g. '46.3'") from error
    if not isinstance(exponent, int):
        raise ValueError(f"printed is {printed!r}: expected a finite number")
    return float(Decimal(5).scaleb(exponent - 1))


def equivalence_test(
    ours: Estimate | ArrayLike, published: float, margin: float, rounding: float = 0.0, level: float = 0.95
) -> Equivalence:
    """Verdict on "our value matches the published one within `margin`" by interval inclusion (TOST).

    `ours` is an estimate, or values over seeds (seeds,), from which `mean_interval` makes one at `level`; an
    estimate keeps its own level. `rounding` is the half-width of the printed value (`rounding_half_width`):
    the paper's number is only known to that precision, so it widens the region. Supported if the whole
    interval lies inside `published ± (margin + rounding)`, contradicted if it lies wholly outside, otherwise
    inconclusive. Inclusion of the two-sided 95 % interval is Schuirmann's two one-sided tests (1987) at 2.5 %
    each, stricter than the customary 5 %: the interval that is drawn is the one that decides.

    Raises `ValueError` for a margin that is not positive, a negative rounding, or a value that is not finite.
    """
    check_level(level)
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin is {margin}: expected a positive number; no run equals a value with margin 0")
    if not (math.isfinite(published) and math.isfinite(rounding) and rounding >= 0):
        raise ValueError(f"published is {published}, rounding {rounding}: expected finite numbers, rounding >= 0")
    reach = margin + rounding
    p_value = None
    if not isinstance(ours, Estimate):
        p_value = tost_p_value(ours, published, reach)
        ours = mean_interval(ours, level)
    low, high = published - reach, published + reach
    return Equivalence(_judge(ours, low, high), ours, published, margin, rounding, low, high, p_value)


def _judge(ours: Estimate, low: float, high: float) -> Verdict:
    if low < ours.low and ours.high < high:
        return Verdict.supported
    if ours.high < low or high < ours.low:
        return Verdict.contradicted
    return Verdict.inconclusive


def tost_p_value(values: ArrayLike, target: float, margin: float) -> float:
    """Larger p of the two one-sided t tests of "the mean lies outside target ± margin"; `values` is (seeds,).

    1 for a single seed; 0 or 1 where the values do not differ at all.
    """
    array = finite_array("values", values, ndim=1)
    distance = margin - abs(float(array.mean()) - target)
    if len(array) == 1:
        return 1.0
    if np.ptp(array) == 0:
        return 0.0 if distance > 0 else 1.0
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(stats.t.sf(distance / error, len(array) - 1))
