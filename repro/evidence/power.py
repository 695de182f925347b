"""How many seeds settle an inconclusive claim."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from repro.evidence.checks import check_level, finite_array


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
