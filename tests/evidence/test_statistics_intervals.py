"""Intervals against scipy, hand-computed values and identities."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repro.evidence.intervals import best_threshold_mean, resample_weights, weighted_mean
from repro.evidence.statistics import (
    Estimate,
    bootstrap_statistic,
    image_interval,
    mean_interval,
    paired_interval,
    two_level_interval,
    unpaired_interval,
)

RNG = np.random.default_rng(0)


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def test_mean_interval_by_hand_and_by_scipy() -> None:
    estimate = mean_interval([1, 2, 3])  # mean 2, sd 1, t(2; 0.975) = 4.30265
    assert estimate.value == 2 and ends(estimate) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    values = RNG.normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert ends(mean_interval(values, 0.9)) == pytest.approx((expected.low, expected.high))


def test_one_seed_says_nothing_and_equal_seeds_are_named() -> None:
    assert ends(mean_interval([71.2])) == (-np.inf, np.inf)
    assert ends(two_level_interval(RNG.normal(size=(1, 20)))) == (-np.inf, np.inf)
    equal = mean_interval([0.1] * 3)
    assert ends(equal) == (0.1, 0.1) and "no spread" in equal.method


def test_paired_interval_has_the_sign_of_first_minus_second() -> None:
    first, second = [3.0, 5.0, 8.0], [1.0, 2.0, 3.0]
    assert paired_interval(first, second).value == pytest.approx(10 / 3)
    swapped = paired_interval(second, first)
    assert (-swapped.high, -swapped.low) == pytest.approx(ends(paired_interval(first, second)))
    expected = stats.ttest_rel(first, second).confidence_interval()
    assert ends(paired_interval(first, second)) == pytest.approx((expected.low, expected.high))


def test_pairing_removes_the_shared_part() -> None:
    shared, noise = 10 * RNG.normal(size=(5, 60)), RNG.normal(size=(2, 5, 60))
    first, second = shared + noise[0] + 1, shared + noise[1]
    paired = paired_interval(first, second, over="seeds and images")
    assert paired.high - paired.low < 0.2 * (two_level_interval(first).high - two_level_interval(first).low)


def test_unpaired_interval_is_welch() -> None:
    first, second = RNG.normal(size=4), RNG.normal(size=7)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert ends(unpaired_interval(first, second)) == pytest.approx((expected.low, expected.high))


def test_two_levels_reduce_to_one() -> None:
    images = RNG.normal(size=80)
    deterministic = np.tile(images, (4, 1))  # the seed changes nothing: only images are uncertain
    expected = stats.ttest_1samp(images, 0).confidence_interval()
    assert ends(two_level_interval(deterministic)) == pytest.approx((expected.low, expected.high))
    seeds = RNG.normal(size=4)[:, None] + np.zeros((4, 80))  # images change nothing: only seeds are
    assert ends(two_level_interval(seeds)) == pytest.approx(ends(mean_interval(seeds[:, 0])))


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 30))
def test_two_levels_are_never_narrower_than_the_seeds_alone(seed: int, seeds: int, images: int) -> None:
    values = np.random.default_rng(seed).normal(size=(seeds, images))
    outer, inner = two_level_interval(values), mean_interval(values.mean(axis=1))
    assert outer.low <= inner.low + 1e-12 and inner.high <= outer.high + 1e-12


def test_image_interval_agrees_with_scipy_bca() -> None:
    values = RNG.exponential(size=300)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    estimate = image_interval(values)
    width = expected.high - expected.low
    assert ends(estimate) == pytest.approx((expected.low, expected.high), abs=0.04 * width)
    assert estimate == image_interval(values) != image_interval(values, seed=1)


def test_shares_keep_a_width_at_the_ceiling() -> None:
    won = image_interval(np.full(100, 100.0), bounds=(0, 100))
    assert won.value == won.high == 100 and won.low == pytest.approx(96.30, abs=0.01)  # 1 / (1 + z²/100)
    lost = image_interval(np.zeros(100), bounds=(0, 100))
    assert lost.high == pytest.approx(3.70, abs=0.01)


def test_weights_are_resamples_within_strata() -> None:
    strata = np.repeat([0, 1], [10, 30])
    weights = np.concatenate(list(resample_weights(40, 500, np.random.default_rng(0), strata)))
    assert weights.shape == (500, 40)
    np.testing.assert_allclose(weights[:, :10].sum(axis=1), 0.25)
    np.testing.assert_allclose(weights[:, 10:].sum(axis=1), 0.75)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 40, rtol=0.25)


def test_strata_remove_the_spread_between_them() -> None:
    strata = np.repeat([0, 1], 100)
    values = 10.0 * strata + RNG.normal(size=200)
    free = bootstrap_statistic(values, weighted_mean, interval="bca")
    kept = bootstrap_statistic(values, weighted_mean, interval="bca", strata=strata)
    assert kept.high - kept.low < 0.3 * (free.high - free.low)


def test_maximum_is_taken_anew_in_every_resample() -> None:
    hits = np.eye(2)[RNG.integers(0, 2, 200)]  # two thresholds, each right for half of the images
    assert best_threshold_mean(np.array([[1.0, 0.0], [0.5, 0.5]]), np.eye(2)).tolist() == [1.0, 0.5]
    best = bootstrap_statistic(hits)
    fixed = bootstrap_statistic(hits[:, int(hits.mean(axis=0).argmax())], weighted_mean)
    assert best.value == fixed.value  # the same number, but the maximum knows its upward bias
    assert (best.low + best.high) / 2 < (fixed.low + fixed.high) / 2 - 0.001


def test_bootstrap_is_fast_and_chunked() -> None:
    values = RNG.random(2000)
    start = time.process_time()
    image_interval(values)
    assert time.process_time() - start < 1.5
    rows = [len(chunk) for chunk in resample_weights(2000, 2500, np.random.default_rng(0))]
    assert sum(rows) == 2500 and max(rows) * 2000 * 8 <= 64e6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0, float("nan")]), "NaN"),
        (lambda: mean_interval([]), "at least one"),
        (lambda: mean_interval([1.0, 2.0], level=95), "0.95"),
        (lambda: mean_interval([[1.0, 2.0]]), "axes"),
        (lambda: paired_interval([1, 2], [1, 2, 3]), "same order"),
        (lambda: two_level_interval([[1.0], [2.0]]), "images"),
        (lambda: image_interval([1.0, 2.0], bounds=(0, 1)), "inside"),
        (lambda: bootstrap_statistic([1.0]), "at least 2"),
        (lambda: bootstrap_statistic([1.0, 2.0, 3.0], strata=[0, 0, 1]), "single image"),
        (lambda: Estimate(1.0, 2.0, 3.0, 3), "outside"),
        (lambda: Estimate(float("nan"), 0.0, 1.0, 3), "NaN"),
        (lambda: Estimate(1.0, 0.0, 2.0, 0), "at least one"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
