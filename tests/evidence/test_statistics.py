"""Intervals against scipy, closed formulas and identities; the rule; corrections; plans; error rates by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repro.evidence.decisions import Region, Verdict, decide, holm, multiple_comparison_note, plan
from repro.evidence.statistics import (
    Estimate,
    Spread,
    image_interval,
    interval_difference,
    mean_interval,
    paired_interval,
    pooled_variance,
    tango_interval,
    two_level_interval,
    unpaired_interval,
    with_doubt,
)

RNG = np.random.default_rng(0)
numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
widths = st.floats(0, 50).map(lambda x: round(x, 3))
ORDER = {Verdict.contradicted: 0, Verdict.inconclusive: 1, Verdict.supported: 2}


def ends(estimate):
    return estimate.low, estimate.high


def around(value, half, **fields):
    return Estimate(value, value - half, value + half, 5, **fields)


def test_mean_interval_by_hand_and_by_scipy():
    estimate = mean_interval([1, 2, 3])  # mean 2, sd 1, t(2; 0.975) = 4.30265
    assert estimate.value == 2 and ends(estimate) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    values = RNG.normal(size=7)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values).ends(0.05) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    "estimate",
    [
        mean_interval([71.2]),
        mean_interval([0.1] * 3),
        two_level_interval(RNG.normal(size=(1, 20))),
        two_level_interval(np.ones((3, 20))),
        image_interval([3.0] * 60),
        unpaired_interval([1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_no_spread_no_interval_no_verdict(estimate):
    assert ends(estimate) == (-np.inf, np.inf)
    assert "no interval" in estimate.method
    assert decide(estimate, Region(-100)) == Verdict.inconclusive
    assert estimate.p_value() == 1


def test_paired_interval_has_the_sign_of_first_minus_second():
    first, second = [3.0, 5.0, 8.0], [1.0, 2.0, 3.0]
    assert paired_interval(first, second).value == pytest.approx(10 / 3)
    swapped = paired_interval(second, first)
    assert (-swapped.high, -swapped.low) == pytest.approx(ends(paired_interval(first, second)))
    expected = stats.ttest_rel(first, second)
    assert ends(paired_interval(first, second)) == pytest.approx(tuple(expected.confidence_interval()))
    assert paired_interval(first, second).p_value() == pytest.approx(expected.pvalue, abs=1e-9)


def test_unpaired_interval_is_welch():
    first, second = RNG.normal(size=4), RNG.normal(size=7)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert ends(unpaired_interval(first, second)) == pytest.approx((expected.low, expected.high))


def test_two_levels_reduce_to_one():
    images = RNG.normal(size=80)
    deterministic = np.tile(images, (4, 1))  # the seed changes nothing: only images are uncertain
    expected = stats.ttest_1samp(images, 0).confidence_interval()
    assert ends(two_level_interval(deterministic)) == pytest.approx((expected.low, expected.high))
    seeds = RNG.normal(size=4)[:, None] + np.zeros((4, 80))  # images change nothing: only seeds are
    assert ends(two_level_interval(seeds)) == pytest.approx(ends(mean_interval(seeds[:, 0])))


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 30))
def test_two_levels_are_never_narrower_than_the_seeds_alone(seed, seeds, images):
    values = np.random.default_rng(seed).normal(size=(seeds, images))
    outer, inner = two_level_interval(values), mean_interval(values.mean(axis=1))
    assert outer.low <= inner.low + 1e-12 and inner.high <= outer.high + 1e-12


def test_pooled_variance_is_that_of_the_two_way_layout():
    table = RNG.normal(size=(6, 4)) + 10 * RNG.normal(size=(6, 1)) + 10 * RNG.normal(size=4)
    found = pooled_variance(table)
    pairs = [table[i] - table[j] for i in range(6) for j in range(i)]
    assert found.variance == pytest.approx(np.mean([pair.var(ddof=1) for pair in pairs]) / 2)  # an identity
    estimate = paired_interval(table[0], table[1], pooled=found)
    own = (table[0] - table[1]).var(ddof=1)
    half = stats.t.ppf(0.975, 5) * math.sqrt((3 * own + 2 * 2 * found.variance) / 5 / 4)
    assert estimate.high - estimate.value == pytest.approx(half)
    images = np.repeat(table[:, :, None], 30, axis=2)  # images agree: the seeds alone decide
    both = paired_interval(images[0], images[1], "seeds and images", found)
    assert ends(both) == pytest.approx(ends(estimate))


def test_a_method_with_a_spread_of_its_own_is_not_pooled():
    table = RNG.normal(size=(8, 5))
    assert pooled_variance(table) is not None
    table[3] *= 20
    assert pooled_variance(table) is None
    assert pooled_variance(table[:4]) is None


def test_skewed_means_are_corrected_towards_the_long_tail():
    """Against Hall's transformation solved numerically, not by its closed inverse."""
    values = RNG.exponential(size=80)
    n, skewness = len(values), stats.skew(values)
    estimate = image_interval(values)

    def transformed(truth):
        t = (values.mean() - truth) / (values.std(ddof=1) / math.sqrt(n))
        root = math.sqrt(n)
        return t + skewness * t**2 / (3 * root) + skewness**2 * t**3 / (27 * n) + skewness / (6 * root)

    student = stats.ttest_1samp(values, 0).confidence_interval()
    assert transformed(estimate.high) == pytest.approx(stats.t.ppf(0.025, n - 1), abs=1e-6)
    assert estimate.low == pytest.approx(student.low)  # neither end lies inside Student's
    assert transformed(student.low) > stats.t.ppf(0.975, n - 1)
    assert estimate.high - estimate.value > estimate.value - estimate.low
    mirrored = image_interval(-values)
    assert (-mirrored.high, -mirrored.low) == pytest.approx(ends(estimate))


def test_second_order_ends_are_those_of_a_bootstrap():
    values = RNG.exponential(size=300)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    estimate = image_interval(values)
    assert estimate.high == pytest.approx(expected.high, abs=0.06 * (expected.high - expected.low))


def test_shares_keep_a_width_at_the_ceiling():
    won = image_interval(np.full(100, 100.0), bounds=(0, 100))
    assert won.value == won.high == 100 and won.low == pytest.approx(96.30, abs=0.01)  # 1 / (1 + z²/100)
    for hits in (3, 50):
        expected = stats.binomtest(hits, 80).proportion_ci(method="wilson")
        found = image_interval(np.repeat([1.0, 0.0], [hits, 80 - hits]), bounds=(0, 1))
        assert ends(found) == pytest.approx((expected.low, expected.high))


def test_tango_agrees_with_its_paper_and_mirrors():
    """Table II of Tango (1998): 43 pairs, 1 and 0 discordant; 9 and 3 of 32, by hand from the score equation."""
    assert ends(tango_interval(0, 0, 30)) == pytest.approx((-0.1135, 0.1135), abs=1e-4)  # z² / (n + z²)
    first, second = tango_interval(9, 3, 32, 100.0), tango_interval(3, 9, 32, 100.0)
    assert ends(first) == pytest.approx((-second.high, -second.low))
    hits = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [9, 3, 15, 5], axis=0) * 100.0
    paired = paired_interval(hits[:, 0], hits[:, 1], over="images")
    assert paired == first
    assert "Tango" in paired.method
    assert paired.p_value() == pytest.approx(stats.norm.sf(6 / math.sqrt(12)) * 2, abs=1e-6)  # McNemar at δ = 0


@pytest.mark.parametrize(
    "estimate", [mean_interval([1.0, 2.0, 4.0]), image_interval(RNG.exponential(size=60)), tango_interval(9, 3, 60)]
)
def test_confidence_inverts_the_interval(estimate):
    assert estimate.confidence(estimate.low) == pytest.approx(0.975, abs=1e-6)
    assert estimate.confidence(estimate.high) == pytest.approx(0.025, abs=1e-6)


def test_few_images_and_outliers_are_doubted():
    assert "fewer than 50" in image_interval(RNG.normal(size=49)).doubt
    assert not image_interval(RNG.normal(size=50)).doubt
    values = RNG.normal(size=200)
    values[0] = 500
    assert "a few images carry the mean" in image_interval(values).doubt
    assert decide(image_interval(np.append(values, 1e3)), Region(-1e6)) == Verdict.inconclusive


@pytest.mark.parametrize(
    ("low", "high", "region", "verdict"),
    [
        (0.1, 2, Region(0), "supported"),
        (-2, -0.1, Region(0), "contradicted"),
        (-1, 1, Region(0), "inconclusive"),
        (0, 1, Region(0), "inconclusive"),
        (0.1, 2, Region(1), "inconclusive"),
        (0.1, 0.9, Region(1), "contradicted"),
        (0.1, 0.3, Region(0, matters=0.5), "inconclusive"),
        (-0.3, -0.1, Region(0, matters=0.5), "inconclusive"),
        (0.1, 0.9, Region(0, matters=0.5), "supported"),
        (45.5, 46.5, Region(45.25, 47.35), "supported"),
        (45.0, 47.0, Region(45.25, 47.35), "inconclusive"),
        (48.0, 49.0, Region(45.25, 47.35), "contradicted"),
        (-math.inf, math.inf, Region(0), "inconclusive"),
    ],
)
def test_decide(low, high, region, verdict):
    value = 0.0 if math.isinf(low) else (low + high) / 2
    assert decide(Estimate(value, low, high, 3), region) == verdict
    assert decide(Estimate(value, low, high, 3, doubt="why"), region) == Verdict.inconclusive


@given(numbers, widths, widths, numbers)
def test_a_larger_advantage_never_hurts_the_claim(value, half, shift, margin):
    before = decide(around(value, half), Region(margin))
    assert ORDER[decide(around(value + shift, half), Region(margin))] >= ORDER[before]
    assert ORDER[decide(around(value, half), Region(margin + shift))] <= ORDER[before]


@given(numbers, widths, widths, numbers)
def test_a_wider_interval_decides_nothing_new(value, half, extra, margin):
    narrow, wide = (decide(around(value, h), Region(margin)) for h in (half, half + extra))
    assert wide in (narrow, Verdict.inconclusive)


def test_more_parts_make_a_contradiction_harder_and_support_no_easier():
    estimate = mean_interval([-2.0, -3.0, -2.5, -2.2])
    found = [decide(estimate, Region(0), parts) for parts in (1, 2, 1000)]
    assert found == [Verdict.contradicted, Verdict.contradicted, Verdict.inconclusive]
    assert decide(around(-5, 1), Region(0), 2) == Verdict.inconclusive  # ends at other levels are not known
    assert decide(mean_interval([2.0, 3.0, 2.5]), Region(0), 1000) == Verdict.supported


def test_interval_difference_widens_and_keeps_doubts():
    a, b = mean_interval([1.0, 2.0, 3.0]), with_doubt(mean_interval([0.0, 0.5, 1.0]), "why")
    found = interval_difference(a, b)
    assert ends(found) == pytest.approx((a.low - b.high, a.high - b.low))
    assert found.ends(0.01)[0] == pytest.approx(a.ends(0.01)[0] - b.ends(0.01)[1])
    assert found.doubt == "why"


def test_verdicts_differ_in_symbol_and_word():
    assert len({v.symbol for v in Verdict}) == len({v.word for v in Verdict}) == 5
    assert Verdict("not_comparable").label == "≠ not comparable"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_nothing_and_bonferroni(p):
    family = holm(p)
    assert np.all(family >= np.array(p)) and np.all(family <= np.minimum(1, len(p) * np.array(p)) + 1e-12)


def test_note_counts_what_remains():
    note = multiple_comparison_note([0.001, 0.03, 0.04, 0.2])
    assert "Of 4 distinct comparisons" in note and "3 exclude zero (about 0.2" in note and "1 remains." in note


def test_a_plan_reaches_its_power():
    """Of simulated studies as large as planned, about 80 % are decided."""
    first = Estimate(1.0, -1, 3, 3, spread=Spread(4.0, 0.0, 0.0, 3, None))
    seeds = plan(first, Region(0)).seeds
    values = np.random.default_rng(1).normal(1.0, 2.0, (4000, seeds))
    decided = np.mean([decide(mean_interval(row), Region(0)) == Verdict.supported for row in values])
    assert decided == pytest.approx(0.8, abs=0.04)


def test_a_plan_knows_what_cannot_be_settled():
    stuck = Estimate(1.0, -1, 3, 3, spread=Spread(0.1, 400.0, 0.0, 3, 100))
    found = plan(stuck, Region(0))
    assert found.seeds is None and found.images > 100
    assert plan(Estimate(0.2, -1, 3, 3, spread=stuck.spread), Region(0, matters=0.5)).images is None
    against = Estimate(-1.0, -3, 1, 3, spread=Spread(4.0, 0.0, 0.0, 3, None))
    assert plan(against, Region(0), 18).seeds > plan(against, Region(0)).seeds


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0, float("nan")]), "NaN"),
        (lambda: mean_interval([]), "at least one"),
        (lambda: mean_interval([[1.0, 2.0]]), "axes"),
        (lambda: paired_interval([1, 2], [1, 2, 3]), "same order"),
        (lambda: two_level_interval([[1.0], [2.0]]), "images"),
        (lambda: image_interval([1.0, 2.0], bounds=(0, 1)), "inside"),
        (lambda: image_interval([1.0]), "at least 2"),
        (lambda: holm([1.5]), "between 0 and 1"),
        (lambda: decide(around(1, 1), Region(0), 0), "at least 1"),
        (lambda: Estimate(1.0, 2.0, 3.0, 3), "outside"),
        (lambda: Estimate(float("nan"), 0.0, 1.0, 3), "NaN"),
        (lambda: Estimate(1.0, 0.0, 2.0, 0), "at least one"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
