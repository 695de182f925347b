"""p values of many comparisons at once, and Holm's correction."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from repro.evidence.checks import check_level, finite_array, paired_arrays
from repro.evidence.intervals import Over, crossed_errors


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
