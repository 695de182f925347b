"""What can be said about a claim, and the only rule by which an interval says it."""

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from repro.evidence.intervals import (
    Estimate,
    Over,
    check_level,
    crossed_errors,
    finite_array,
    mean_interval,
    paired_arrays,
)

Direction = Literal["greater", "less"]


class Verdict(StrEnum):
    """The five things a run can say about a claim; shown as symbol and word, never by colour alone."""

    supported = "supported"
    """The whole interval lies where the claim puts it."""
    contradicted = "contradicted"
    """The whole interval lies where the claim says it does not."""
    inconclusive = "inconclusive"
    """The interval lies on both sides, or touches the boundary: more seeds are needed."""
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


def decide(difference: Estimate, direction: Direction, margin: float = 0.0) -> Verdict:
    """Verdict on "the difference is greater (less) than zero by more than `margin`".

    `direction="greater"` claims `difference > margin`, `"less"` claims `difference < -margin`, in the unit of
    the difference. Supported if the whole interval lies strictly inside the claimed side, contradicted if it
    lies strictly on the other side, otherwise inconclusive; an end that touches the boundary decides nothing.
    A negative margin claims "not worse by more than |margin|".

    Raises `ValueError` for an unknown direction or a margin that is not finite.
    """
    if direction not in ("greater", "less"):
        raise ValueError(f"direction is {direction!r}: expected 'greater' or 'less'")
    if not math.isfinite(margin):
        raise ValueError(f"margin is {margin}: expected a finite number in the unit of the difference")
    low, high = (difference.low, difference.high) if direction == "greater" else (-difference.high, -difference.low)
    if low > margin:
        return Verdict.supported
    if high < margin:
        return Verdict.contradicted
    return Verdict.inconclusive


# Does a run match the paper's value? Equivalence, not the mere absence of a significant difference.


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


# p values of many comparisons at once, and Holm's correction.


def mean_p_value(differences: ArrayLike) -> float:
    """Two-sided p of Student's t test that the mean of `differences` (seeds,) is 0; below 1 − level exactly
    when `mean_interval(differences, level)` excludes 0. 1 for one seed; 0 where all agree on one value but 0.
    """
    array = finite_array("differences", differences, ndim=1)
    if len(array) == 1:
        return 1.0
    if np.ptp(array) == 0:
        return 1.0 if array[0] == 0 else 0.0
    return float(stats.ttest_1samp(array, 0.0).pvalue)


def paired_p_value(first: ArrayLike, second: ArrayLike, over: Over = "seeds") -> float:
    """Two-sided p that the mean of `first − second` is 0; shapes as for `paired_interval`.

    Over seeds, and over seeds and images, it is below 1 − level exactly when `paired_interval` excludes 0; over images
    it is Student's t, where the interval is a bootstrap from 50 images on. 1 for one seed.

    Raises `ValueError` for shapes that do not match or do not fit `over`.
    """
    one, other = paired_arrays(first, second)
    if over != "seeds and images":
        return mean_p_value(one - other)
    differences = finite_array("differences", one - other, ndim=2)
    if len(differences) == 1:
        return 1.0
    if np.ptp(differences) == 0:
        return 1.0 if differences.flat[0] == 0 else 0.0
    mean, both, seeds_only = crossed_errors(differences)
    return max(_student_p(float(mean), float(error), float(freedom)) for error, freedom in (both, seeds_only))


def _student_p(mean: float, error: float, freedom: float) -> float:
    """Two-sided p of a mean with its standard error; an error of 0 leaves no doubt."""
    return float(2 * stats.t.sf(abs(mean) / error, freedom)) if error > 0 else float(mean == 0)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p values (Scand. J. Statistics 6, 1979), in the order given; (m,) to (m,).

    Rejecting those below α keeps the chance of even one false rejection below α under any dependence.
    Raises `ValueError` for values outside [0, 1].
    """
    p = finite_array("p_values", p_values, ndim=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values span [{p.min()}, {p.max()}]: expected probabilities between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def multiple_comparison_note(p_values: ArrayLike, level: float = 0.95) -> str:
    """One sentence on how many of m comparisons stand alone, by chance, and after Holm's correction."""
    check_level(level)
    p = finite_array("p_values", p_values, ndim=1)
    alpha = 1 - level
    plain, corrected = int(np.sum(p < alpha)), int(np.sum(holm(p) < alpha))
    return (
        f"Of {len(p)} comparison{'s' * (len(p) != 1)} at the {100 * level:g} % level, {plain} "
        f"exclude{'s' * (plain == 1)} zero "
        f"(about {alpha * len(p):.1f} would by chance alone if nothing differed); "
        f"after Holm's correction {corrected} remain{'s' * (corrected == 1)}."
    )


# How many seeds settle an inconclusive claim.


def paired_t_power(n: int, effect: float, sd: float, level: float = 0.95) -> float:
    """Chance that a two-sided paired t test over `n >= 2` seeds detects a mean difference `effect`.

    `sd` is the standard deviation of the per-seed differences; noncentral t, both tails.
    """
    check_level(level)
    if n < 2 or not sd > 0:
        raise ValueError(f"n is {n}, sd is {sd}: expected n >= 2 and sd > 0")
    noncentrality = abs(effect) / sd * math.sqrt(n)
    critical = stats.t.ppf((1 + level) / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, noncentrality) + stats.nct.cdf(-critical, n - 1, noncentrality))


def seeds_needed(spread: float | ArrayLike, effect: float, power: float = 0.8, level: float = 0.95) -> int:
    """Fewest seeds with which a paired t interval excludes zero with probability `power`.

    `spread` is the standard deviation of the per-seed differences, or those differences (seeds,), at least 2.
    `effect` is the mean difference worth detecting; for a claim with a margin, what remains beyond the
    margin. A standard deviation from 3 seeds is itself uncertain: plan with the upper end of `sd_interval` to
    be safe.

    Raises `ValueError` for an effect of 0, a negative spread, fewer than 2 differences, or power outside
    (level's false-positive rate, 1).
    """
    check_level(level)
    if not 1 - level < power < 1:
        raise ValueError(f"power is {power}: expected a fraction between {1 - level:.3g} and 1, e.g. 0.8")
    if not (math.isfinite(effect) and effect != 0):
        raise ValueError(f"effect is {effect}: no number of seeds detects a difference of zero")
    sd = _standard_deviation(spread)
    if sd == 0:
        return 2
    # The normal approximation is a lower bound within a few seeds, so the search is short at any size.
    quantiles = stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)
    n = max(2, math.floor((quantiles * sd / abs(effect)) ** 2))
    while paired_t_power(n, effect, sd, level) < power:
        n += 1
    return n


def _standard_deviation(spread: float | ArrayLike) -> float:
    if np.ndim(spread) == 0:
        sd = float(np.asarray(spread))
        if not (math.isfinite(sd) and sd >= 0):
            raise ValueError(f"spread is {sd}: expected a standard deviation >= 0")
        return sd
    differences = finite_array("spread", spread, ndim=1)
    if len(differences) < 2:
        raise ValueError("spread holds 1 difference: at least 2 seeds are needed to know a standard deviation")
    return float(differences.std(ddof=1))


def sd_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """χ² interval of the standard deviation of `values` (seeds,), at least 2; exact for normal values.

    From 3 seeds it spans 0.52 to 6.3 times the estimate.
    """
    check_level(level)
    array = finite_array("values", values, ndim=1)
    sd, freedom = _standard_deviation(array), len(array) - 1
    upper, lower = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], freedom)
    return sd * math.sqrt(freedom / upper), sd * math.sqrt(freedom / lower)
