"""Comparing many runs at once: probability of improvement and corrections for many comparisons."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from repro.evidence.bootstrap import resample_weights
from repro.evidence.checks import check_level, finite_array
from repro.evidence.estimate import Estimate


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    better: Literal["higher", "lower"] = "higher",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Chance that a run of `first` beats a run of `second`, ties counted half, averaged over tasks.

    Shapes (runs,) or (runs, tasks); the two may differ in runs, not in tasks. The Mann–Whitney statistic with
    a percentile bootstrap stratified by task and method (as in Agarwal et al., NeurIPS 2021). Where the
    groups are separated that bootstrap has no width; there the exact bound of k = min(runs) · tasks
    independent pairs, all won, (α/2)^(1/k), is the far end. Measured coverage at 3 / 5 / 10 runs (one task,
    truth 0.76): 97.6 / 95.8 / 93.3 %. It describes a comparison; `paired_interval` decides it.

    Raises `ValueError` for shapes that do not fit, NaN, or a level outside (0, 1).
    """
    check_level(level)
    if better not in ("higher", "lower"):
        raise ValueError(f"better is {better!r}: expected 'higher' or 'lower'")
    one, other = _runs_by_task("first", first), _runs_by_task("second", second)
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"first has {one.shape[1]} task(s), second {other.shape[1]}: expected the same tasks")
    sign = 1.0 if better == "higher" else -1.0
    wins = 0.5 + 0.5 * np.sign(sign * (one[:, None, :] - other[None, :, :]))
    value = float(wins.mean())
    pairs = min(len(one), len(other)) * one.shape[1]
    if value in (0.0, 1.0):
        reach = ((1 - level) / 2) ** (1 / pairs)
        low, high = (reach, 1.0) if value == 1.0 else (0.0, 1.0 - reach)
        return Estimate(value, low, high, min(len(one), len(other)), "exact bound, all runs separated")
    draws = _resampled_wins(wins, resamples, np.random.default_rng(seed))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    low, high = min(float(low), value), max(float(high), value)
    return Estimate(value, low, high, min(len(one), len(other)), "percentile bootstrap over runs within tasks")


def _runs_by_task(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = finite_array(name, values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}: expected (runs,) or (runs, tasks)")
    return array


def _resampled_wins(wins: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap draws (resamples,) of the mean of `wins` (runs, runs, tasks), task by task."""
    runs, others, tasks = wins.shape
    total = np.zeros(resamples)
    for task in range(tasks):
        left = np.concatenate(list(resample_weights(runs, resamples, rng)))
        right = np.concatenate(list(resample_weights(others, resamples, rng)))
        total += np.sum((left @ wins[:, :, task]) * right, axis=1)
    return total / tasks


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
