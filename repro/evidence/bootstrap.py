"""Bootstrap over images for statistics that are not plain means, with weights instead of index gathers."""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from repro.evidence.checks import check_level, finite_array
from repro.evidence.estimate import Estimate

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]
"""`statistic(weights, values)`: weights (b, n), rows summing to 1; values (n, ...); returns (b,)."""

IntervalKind = Literal["normal", "bca"]

_KINDS = {"normal": "bias-corrected normal", "bca": "BCa"}
_CHUNK_CELLS = 4_000_000  # weights held at once: 32 MB each of draws and weights, whatever n is
_JACKKNIFE_GROUPS = 1000  # acceleration is the same in expectation for groups; bounds the cost at n = 50,000


def weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Mean over images under each row of weights: (b, n) and (n, ...) give (b, ...)."""
    flat = weights @ values.reshape(len(values), -1)
    return flat.reshape(len(weights), *values.shape[1:])


def best_threshold_mean(weights: Floats, values: Floats) -> Floats:
    """Largest mean over the last axis, e.g. MaxBoxAcc from hits (n images, t thresholds); returns (b,).

    The maximum is taken anew in every resample, so that choosing the threshold is part of the uncertainty.
    """
    return weighted_mean(weights, values).max(axis=-1)


def resample_weights(
    n: int, resamples: int, rng: np.random.Generator, strata: ArrayLike | None = None
) -> Iterator[Floats]:
    """Chunks (b, n) of bootstrap weights whose rows sum to 1; `resamples` rows in all.

    With `strata` (n labels) images are drawn within each stratum, so that every resample keeps the class
    sizes.
    """
    members = _members(n, strata)
    rows = max(1, _CHUNK_CELLS // n)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        weights = np.empty((size, n))
        for inside in members:
            weights[:, inside] = _counts(size, len(inside), rng) / n
        yield weights


def _counts(rows: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    draws = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n)


def _members(n: int, strata: ArrayLike | None) -> list[NDArray[np.int64]]:
    if strata is None:
        return [np.arange(n)]
    labels = np.asarray(strata)
    if labels.shape != (n,):
        raise ValueError(f"strata has shape {labels.shape}: expected ({n},), one label per image")
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        raise ValueError("a stratum holds a single image, which has no spread: merge it into another stratum")
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


def bootstrap_statistic(
    values: ArrayLike,
    statistic: Statistic = best_threshold_mean,
    level: float = 0.95,
    interval: IntervalKind = "normal",
    resamples: int = 10_000,
    seed: int = 0,
    strata: ArrayLike | None = None,
) -> Estimate:
    """Bootstrap interval of `statistic` over images, reproducible by `seed`.

    `values` is (n, ...), one entry per image (hits at every threshold, two methods side by side, …).
    `statistic` is evaluated under resampled weights, so a metric that maximises over thresholds maximises in
    every resample.

    `interval="normal"`: estimate − bootstrap bias ± z · bootstrap standard error. For maxima, which are
    biased upwards: a percentile or BCa interval lies on the wrong side of that bias. Not covered as promised
    at few images or where many thresholds are equally good: measured in `docs/statistics.md`.
    `interval="bca"`: bias-corrected and accelerated (Efron, JASA 82, 1987). For smooth statistics such as
    means. Either is widened to hold the estimate where the correction would exclude it.

    Raises `ValueError` for fewer than 2 images, values that are not finite, bad strata or a level outside (0,
    1).
    """
    check_level(level)
    array = finite_array("values", values)
    n = len(array)
    if n < 2:
        raise ValueError(f"values holds {n} image(s): a bootstrap needs at least 2")
    members = _members(n, strata)
    value = float(statistic(np.full((1, n), 1 / n), array)[0])
    rng = np.random.default_rng(seed)
    draws = np.concatenate([statistic(weights, array) for weights in resample_weights(n, resamples, rng, strata)])
    if interval == "normal":
        low, high = corrected_normal_bounds(value, draws, level)
    else:
        left_out = [statistic(weights, array) for weights in _leave_out_weights(n, members)]
        low, high = bca_bounds(value, draws, np.concatenate(left_out), level)
    where = "images" if strata is None else "images within strata"
    return Estimate(value, min(low, value), max(high, value), n, f"{_KINDS[interval]} bootstrap over {where}")


def _leave_out_weights(n: int, members: list[NDArray[np.int64]]) -> Iterator[Floats]:
    """Weights without one group of images each; groups interleave, so none swallows a whole stratum."""
    groups = min(n, _JACKKNIFE_GROUPS)
    group_of = np.empty(n, dtype=np.int64)
    group_of[np.concatenate(members)] = np.arange(n) % groups
    rows = max(1, _CHUNK_CELLS // n)
    for start in range(0, groups, rows):
        left_out = np.arange(start, min(start + rows, groups))
        weights = (group_of[None, :] != left_out[:, None]).astype(np.float64)
        for inside in members:
            weights[:, inside] *= len(inside) / n / weights[:, inside].sum(axis=1, keepdims=True)
        yield weights


def corrected_normal_bounds(value: float, draws: Floats, level: float) -> tuple[float, float]:
    """Ends of the bias-corrected normal interval: `2 · value − mean(draws) ± z · sd(draws)`."""
    half = stats.norm.ppf((1 + level) / 2) * draws.std(ddof=1)
    centre = 2 * value - draws.mean()
    return float(centre - half), float(centre + half)


def bca_bounds(value: float, draws: Floats, left_out: Floats, level: float) -> tuple[float, float]:
    """Ends of the BCa interval from bootstrap draws and jackknife values, both one-dimensional.

    Ties with the estimate count half: metrics over images are discrete.
    """
    if np.ptp(draws) == 0:
        return value, value
    below = np.mean(draws < value) + np.mean(draws == value) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / len(draws), 1 - 1 / len(draws)))
    influence = left_out.mean() - left_out
    spread = np.sum(influence**2)
    acceleration = np.sum(influence**3) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    quantiles = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-3))
    low, high = np.quantile(draws, quantiles)
    return float(low), float(high)
