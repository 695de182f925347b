"""Intervals over seeds, over images and over both.

Which interval where, what each was measured to cover, and why: `docs/statistics.md`. Nothing here resamples and nothing
multiplies matrices, so that a printed end depends on neither a random seed nor a processor's linear algebra.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Over = Literal["seeds", "images", "seeds and images"]
Bound = Callable[[float], float]
"""`bound(p)`: the number below which the truth lies with confidence p; increasing in p."""

LEVEL = 0.95
FEW_IMAGES = 50  # below this no interval of a skewed mean covers what it promises
_OUTLIER = 0.5  # sample skewness per √n (its maximum is 1) from which one image or two carry the mean
_BISECTIONS = 60


@dataclass(frozen=True)
class Spread:
    """Variances of one unit of each kind, so that the error of a mean is seed / S + (image + rest / S) / I."""

    seed: float
    image: float
    rest: float
    seeds: int
    images: int | None


@dataclass(frozen=True)
class Estimate:
    """A value and the 95 % interval that is believed to hold the true one.

    `low` and `high` may be infinite (one seed says nothing about the spread); no field may be NaN. `n` counts the
    independent units behind the interval, `method` names it. `doubt` is the reason why it must not decide anything;
    `bound` gives its ends at other levels, `spread` what more units would change.

    Raises `ValueError` unless `low <= value <= high` (up to rounding) and `n >= 1`.
    """

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    doubt: str = ""
    bound: Bound | None = field(default=None, compare=False, repr=False)
    spread: Spread | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            if math.isnan(getattr(self, name)):
                raise ValueError(f"{name} is NaN: an estimate needs numbers; drop or repair the failed runs first")
        if self.n < 1:
            raise ValueError(f"n is {self.n}: an estimate stands on at least one value")
        slack = 1e-9 * max(1.0, abs(self.value))
        if not self.low - slack <= self.value <= self.high + slack:
            raise ValueError(
                f"value {self.value} lies outside its interval [{self.low}, {self.high}]: expected low <= value <= high"
            )

    @property
    def bounded(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def contains(self, number: float) -> bool:
        """Whether `number` lies inside the interval, ends included."""
        return self.low <= number <= self.high

    def ends(self, tail: float) -> tuple[float, float]:
        """The interval that leaves `tail` on either side; infinite where only the 95 % interval is known."""
        if self.bound is None:
            return (self.low, self.high) if tail >= (1 - LEVEL) / 2 else (-math.inf, math.inf)
        return self.bound(tail), self.bound(1 - tail)

    def confidence(self, boundary: float = 0.0) -> float:
        """P(truth > `boundary`) by the confidence distribution that the interval is cut from; 0.5 without one.

        One minus the one-sided p value; for the t intervals also the posterior under a flat prior.
        """
        if self.bound is None:
            return 0.5
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.bound(middle) <= boundary else (low, middle)
        return 1 - (low + high) / 2

    def p_value(self, boundary: float = 0.0) -> float:
        """Two-sided p that the truth is `boundary`; below 5 % exactly when the interval excludes it. 1 without one."""
        above = self.confidence(boundary)
        return 2 * min(above, 1 - above)


def _estimate(
    value: float, bound: Bound, n: int, method: str, spread: Spread | None = None, doubt: str = ""
) -> Estimate:
    tail = (1 - LEVEL) / 2
    return Estimate(value, min(bound(tail), value), max(bound(1 - tail), value), n, method, doubt, bound, spread)


def no_interval(value: float, n: int, why: str) -> Estimate:
    """A value on which nothing can be decided."""
    return Estimate(value, -math.inf, math.inf, n, f"{why}, no interval", why)


def _student(value: float, error: float, freedom: float) -> Bound:
    return lambda p: value + float(stats.t.ppf(p, freedom)) * error


def finite_array(name: str, values: ArrayLike, ndim: int | None = None) -> Floats:
    """`values` as float64; `ValueError` for the wrong number of axes, no entries, NaN and infinity."""
    array = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}: expected {ndim} axes")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: expected at least one value")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{name} holds {bad} value(s) that are NaN or infinite: drop or repair those runs first")
    return array


def exact_mean(values: Floats) -> float:
    """Mean of all entries from their exactly rounded sum: the same in any order, on any machine."""
    return math.fsum(values.ravel().tolist()) / values.size


def _no_spread(values: Floats) -> bool:
    """Whether values differ by rounding at most: the spread of their kind is unknown, not zero."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


# Over seeds, and over seeds and images.


def mean_interval(values: ArrayLike) -> Estimate:
    """Student's t interval of the mean over seeds; `values` is (seeds,), one number per seed.

    One seed, and seeds that do not differ at all, have no interval: neither says how large the spread is.

    Raises `ValueError` for no values or NaN.

    >>> mean_interval([70.0, 71.0, 73.0]).bounded
    True
    """
    array = finite_array("values", values, ndim=1)
    return _over_seeds(array, None)


@dataclass(frozen=True)
class PooledVariance:
    """Variance of the method × seed effects of one column, from that many methods."""

    variance: float
    methods: int


_FEW_METHODS = 5
_WEIGHT = 2  # degrees of freedom lent by the column: as many as a pair has of its own at three seeds


def pooled_variance(table: ArrayLike) -> PooledVariance | None:
    """Residual variance of the two-way layout `table` (methods, seeds): what is left of method and seed.

    None for fewer than five methods or two seeds, where nothing is left, and where one method's share of the squares is
    larger than equal variances allow (Cochran's C against its distribution for this very layout, 5 %): a column whose
    methods do not vary alike has nothing to lend.
    """
    values = finite_array("table", table, ndim=2)
    methods, seeds = values.shape
    if methods < _FEW_METHODS or seeds < 2:
        return None
    squares = _residual_squares(values[None])[0]
    total = math.fsum(squares.tolist())
    if _no_spread(values - values.mean(axis=1, keepdims=True)) or squares.max() / total > _largest_share(
        methods, seeds
    ):
        return None
    return PooledVariance(total / ((methods - 1) * (seeds - 1)), methods)


def _residual_squares(tables: Floats) -> Floats:
    """Sums (n, methods) of squared residuals of two-way layouts (n, methods, seeds)."""
    centred = tables - tables.mean(axis=2, keepdims=True)
    centred = centred - centred.mean(axis=1, keepdims=True)
    return np.sum(centred * centred, axis=2)


@cache
def _largest_share(methods: int, seeds: int) -> float:
    """95 % quantile of one method's largest share of the residual squares under equal variances, from 20,000 draws."""
    draws = _residual_squares(np.random.default_rng(0).normal(size=(20_000, methods, seeds)))
    return float(np.quantile(draws.max(axis=1) / draws.sum(axis=1), 0.95))


def _seed_variance(by_seed: Floats, pooled: PooledVariance | None) -> tuple[float, int, str]:
    """Variance of one value (or difference) per seed, its degrees of freedom, and a word on where it is from.

    A pair's own variance moderated by the column's (Smyth, Stat. Appl. Genet. Mol. Biol. 3, 2004): their average by
    degrees of freedom, where a difference of two methods has twice the pooled variance and the column lends 2.
    """
    variance, freedom = float(by_seed.var(ddof=1)), len(by_seed) - 1
    if pooled is None:
        return variance, freedom, ""
    shared = (freedom * variance + _WEIGHT * 2 * pooled.variance) / (freedom + _WEIGHT)
    return shared, freedom + _WEIGHT, f", variance shared with {pooled.methods} methods"


def _over_seeds(values: Floats, pooled: PooledVariance | None) -> Estimate:
    seeds, value = len(values), exact_mean(values)
    if seeds == 1:
        return no_interval(value, 1, "one seed")
    if pooled is None and _no_spread(values):
        return no_interval(value, seeds, "no spread over seeds")
    variance, freedom, shared = _seed_variance(values, pooled)
    bound, spread = _student(value, math.sqrt(variance / seeds), freedom), Spread(variance, 0.0, 0.0, seeds, None)
    return _estimate(value, bound, seeds, f"Student t over seeds{shared}", spread)


def unpaired_interval(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Welch's t interval of `mean(first) − mean(second)` over seeds that are not shared; `n` is the smaller group.

    Raises `ValueError` as `mean_interval` does.
    """
    one, other = finite_array("first", first, ndim=1), finite_array("second", second, ndim=1)
    difference, n = exact_mean(one) - exact_mean(other), min(len(one), len(other))
    if n == 1:
        return no_interval(difference, 1, "one seed")
    if _no_spread(one) and _no_spread(other):
        return no_interval(difference, n, "no spread over seeds")
    parts = [float(group.var(ddof=1)) / len(group) for group in (one, other)]
    total = sum(parts)
    freedom = total**2 / (parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(other) - 1))
    bound = _student(difference, math.sqrt(total), freedom)
    return _estimate(difference, bound, n, "Welch t over seeds", Spread(total * n, 0.0, 0.0, n, None))


def two_level_interval(values: ArrayLike, pooled: PooledVariance | None = None) -> Estimate:
    """Interval of the grand mean of per-image values (seeds, images) for new seeds *and* new images.

    Every seed sees the same images, so the design is crossed: `value = mean + seed + image + rest`. The variance of the
    grand mean, (MS_seed + MS_image − MS_rest) / (S·I), with Satterthwaite's degrees of freedom (Biometrics Bulletin 2,
    1946) gives a t interval that knows how few the seeds are. It is never narrower than over the seeds alone, since
    Satterthwaite covers 92.6 % at 3 seeds where seeds dominate. `pooled` is for differences of two methods.

    Raises `ValueError` for anything but two axes, fewer than 2 images, or NaN.
    """
    array = finite_array("values", values, ndim=2)
    seeds, images = array.shape
    if images < 2:
        raise ValueError(f"values has shape {array.shape}: expected (seeds, images) with at least 2 images")
    value = exact_mean(array)
    if seeds == 1:
        return no_interval(value, 1, "one seed")
    if _no_spread(array):
        return no_interval(value, seeds, "no spread over seeds and images")
    seed_means, image_means = array.mean(axis=1), array.mean(axis=0)
    rest = array - seed_means[:, None] - image_means + value
    variance, seed_freedom, shared = _seed_variance(seed_means, pooled)
    rest_freedom = (seeds - 1) * (images - 1)
    ms_seed, ms_image = images * variance, seeds * float(image_means.var(ddof=1))
    ms_rest = float(np.sum(rest * rest)) / rest_freedom
    # The difference of mean squares may fall below the pure noise it must contain, even below zero.
    total = max(ms_seed + ms_image - ms_rest, ms_rest)
    freedom = total**2 / (ms_seed**2 / seed_freedom + ms_image**2 / (images - 1) + ms_rest**2 / rest_freedom)
    both = _student(0.0, math.sqrt(total / (seeds * images)), freedom)
    alone = _student(0.0, math.sqrt(variance / seeds), seed_freedom)

    def bound(p: float) -> float:
        return value + (max if p > 0.5 else min)(both(p), alone(p))

    spread = Spread(max(variance - ms_rest / images, 0.0), max(ms_image - ms_rest, 0.0) / seeds, ms_rest, seeds, images)
    return _estimate(value, bound, seeds, f"Satterthwaite t over seeds and images{shared}", spread)


# Over the images of one network.


def image_interval(values: ArrayLike, bounds: tuple[float, float] | None = None) -> Estimate:
    """Interval of the mean of per-image values (images,) for new images and this one trained network.

    Where `bounds` names the ends of the metric, e.g. `(0, 100)`, and every value is one of the two (a hit), Wilson's
    score interval; else Student's t with Hall's correction for skewness (`hall_bound`). A mean of fewer than 50 images,
    or one that an outlier carries, must not decide anything (`Estimate.doubt`).

    Raises `ValueError` for fewer than 2 images, NaN, or values outside `bounds`.
    """
    array = finite_array("values", values, ndim=1)
    n = len(array)
    if n < 2:
        raise ValueError(f"values holds {n} image(s): an interval over images needs at least 2")
    if bounds is not None:
        worst, best = bounds
        if not worst < best or array.min() < worst or array.max() > best:
            raise ValueError(f"bounds is {bounds}, values span [{array.min()}, {array.max()}]: they must lie inside")
        if np.isin(array, bounds).all():
            return _wilson(int(np.count_nonzero(array == best)), n, worst, best)
    value = exact_mean(array)
    if _no_spread(array):
        return no_interval(value, n, "no spread over images")
    deviation, centred = float(array.std(ddof=1)), array - value
    skewness = float((centred * centred * centred).mean()) / float((centred * centred).mean()) ** 1.5
    doubt = f"fewer than {FEW_IMAGES} images" if n < FEW_IMAGES else ""
    if not doubt and abs(skewness) > _OUTLIER * math.sqrt(n):
        doubt = f"a few images carry the mean (skewness {skewness:.1f})"
    spread = Spread(0.0, deviation**2, 0.0, 1, n)
    bound = hall_bound(value, deviation / math.sqrt(n), skewness, n)
    return _estimate(value, bound, n, "skewness-corrected t over images", spread, doubt)


def hall_bound(value: float, error: float, skewness: float, n: int) -> Bound:
    """Bounds of a mean by Hall's monotone cubic transformation of Student's t (J. R. Statist. Soc. B 54, 1992, p. 221).

    T = (mean − μ) / error has skewness; g(T) = T + γ T² / (3√n) + γ² T³ / (27 n) + γ / (6√n) has almost none, and its
    inverse is closed: g⁻¹(x) = 3√n / γ · [(1 + γ x / √n − γ² / (6 n))^⅓ − 1]. Neither end lies inside Student's: the
    skewness of few values is itself uncertain, and alone the correction errs by 3 % each way where there is none.
    """
    root = math.sqrt(n)

    def bound(p: float) -> float:
        student = corrected = float(stats.t.ppf(1 - p, n - 1))
        if abs(skewness) > 1e-9:
            inner = 1 + skewness * student / root - skewness**2 / (6 * n)
            corrected = 3 * root / skewness * (math.cbrt(inner) - 1)
        return value - error * (min if p > 0.5 else max)(student, corrected)

    return bound


def _wilson(hits: int, n: int, worst: float, best: float) -> Estimate:
    def bound(p: float) -> float:
        z = float(stats.norm.ppf(p))
        share = (hits + z * z / 2 + z * math.sqrt(hits * (n - hits) / n + z * z / 4)) / (n + z * z)
        return worst + (best - worst) * share

    value = worst + (best - worst) * hits / n
    variance = (best - worst) ** 2 * hits * (n - hits) / n**2
    return _estimate(value, bound, n, "Wilson score over images", Spread(0.0, variance, 0.0, 1, n))


def tango_interval(only_first: int, only_second: int, n: int, scale: float = 1.0) -> Estimate:
    """Score interval of a difference of paired proportions, times `scale` (Tango, Statistics in Medicine 17, 1998).

    Of n images, `only_first` are hits of the first method alone and `only_second` of the second alone. It keeps a width
    where no image tells the two apart, and mirrors when they change places.
    """

    def score(delta: float) -> float:
        linear = -only_first - only_second + (2 * n - only_first + only_second) * delta
        constant = -only_second * delta * (1 - delta)
        nuisance = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * nuisance + delta * (1 - delta))
        return (only_first - only_second - n * delta) / math.sqrt(max(variance, 1e-300))

    def bound(p: float) -> float:
        wanted, low, high = float(stats.norm.ppf(1 - p)), -1.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > wanted else (low, middle)
        return scale * (low + high) / 2

    difference = (only_first - only_second) / n
    variance = scale**2 * ((only_first + only_second) / n - difference**2)
    return _estimate(scale * difference, bound, n, "Tango score over images", Spread(0.0, variance, 0.0, 1, n))


# Differences of two methods.


def paired_interval(
    first: ArrayLike, second: ArrayLike, over: Over = "seeds", pooled: PooledVariance | None = None
) -> Estimate:
    """Interval of the mean of `first − second`, matched entry by entry over the same seeds and/or images.

    Shapes: (seeds,), (images,), or (seeds, images), as `over` says. Pairing removes what both methods share (an easy
    image, a lucky initialisation), which is most of the spread. Over images, values that are hits or misses get Tango's
    interval; with seeds, `pooled` lends the variance of a whole column.

    Raises `ValueError` for shapes that do not match, and whatever the interval of the differences raises.
    """
    one, other = finite_array("first", first), finite_array("second", second)
    if one.shape != other.shape:
        raise ValueError(
            f"first has shape {one.shape}, second {other.shape}: pairs need the same seeds and images in the same order"
        )
    if over == "seeds":
        return _over_seeds(finite_array("differences", one - other, ndim=1), pooled)
    if over == "seeds and images":
        return two_level_interval(one - other, pooled)
    kinds = np.unique(np.concatenate([one.ravel(), other.ravel()]))
    if one.ndim == 1 and len(one) > 1 and len(kinds) == 2:
        first_only, second_only = int(np.count_nonzero(one > other)), int(np.count_nonzero(one < other))
        return tango_interval(first_only, second_only, len(one), float(kinds[1] - kinds[0]))
    return image_interval(one - other)


def interval_difference(first: Estimate, second: Estimate) -> Estimate:
    """`first − second` where nothing is paired: ends of one against ends of the other, which is conservative."""
    doubt, bound = first.doubt or second.doubt, None
    one, other = first.bound, second.bound
    if one is not None and other is not None:

        def bound(p: float) -> float:
            return one(p) - other(1 - p)

    return Estimate(
        first.value - second.value, first.low - second.high, first.high - second.low,
        min(first.n, second.n), "difference of two intervals", doubt, bound,
    )  # fmt: skip


def with_doubt(estimate: Estimate, doubt: str) -> Estimate:
    """The estimate with a further reason why it must not decide; an earlier reason stays."""
    return replace(estimate, doubt="; ".join(filter(None, [estimate.doubt, doubt]))) if doubt else estimate
