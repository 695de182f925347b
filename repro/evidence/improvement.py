"""Probability of improvement: how often a run of one method beats a run of another."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from repro.evidence.intervals import Estimate, check_level, finite_array, resample_weights


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
