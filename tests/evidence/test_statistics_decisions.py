"""Verdicts, equivalence, power and corrections: signs, monotonicity and known tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repro.evidence.decisions import (
    Verdict,
    decide,
    equivalence_test,
    holm,
    mean_p_value,
    multiple_comparison_note,
    paired_t_power,
    rounding_half_width,
    sd_interval,
    seeds_needed,
    tost_p_value,
)
from repro.evidence.improvement import probability_of_improvement
from repro.evidence.intervals import Estimate, mean_interval

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))
widths = st.floats(0, 50).map(lambda x: round(x, 3))
ORDER = {Verdict.contradicted: 0, Verdict.inconclusive: 1, Verdict.supported: 2}


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half, 5)


@pytest.mark.parametrize(
    ("low", "high", "direction", "margin", "verdict"),
    [
        (0.1, 2, "greater", 0, "supported"),
        (-2, -0.1, "greater", 0, "contradicted"),
        (-2, -0.1, "less", 0, "supported"),
        (0.1, 2, "less", 0, "contradicted"),
        (-1, 1, "greater", 0, "inconclusive"),
        (0, 1, "greater", 0, "inconclusive"),
        (0.1, 2, "greater", 1, "inconclusive"),
        (0.1, 0.9, "greater", 1, "contradicted"),
        (-3, -1.1, "less", 1, "supported"),
        (-0.9, 2, "greater", -1, "supported"),
        (-math.inf, math.inf, "greater", 0, "inconclusive"),
    ],
)
def test_decide(low: float, high: float, direction: str, margin: float, verdict: str) -> None:
    value = 0.0 if math.isinf(low) else (low + high) / 2
    assert decide(Estimate(value, low, high, 3), direction, margin) == verdict  # type: ignore[arg-type]


@given(numbers, widths, widths, numbers)
def test_a_larger_difference_never_hurts_the_claim(value: float, half: float, shift: float, margin: float) -> None:
    before = decide(around(value, half), "greater", margin)
    assert ORDER[decide(around(value + shift, half), "greater", margin)] >= ORDER[before]
    assert ORDER[decide(around(value, half), "greater", margin + shift)] <= ORDER[before]


@given(numbers, widths, widths, numbers)
def test_a_wider_interval_decides_nothing_new(value: float, half: float, extra: float, margin: float) -> None:
    narrow, wide = (decide(around(value, h), "greater", margin) for h in (half, half + extra))
    assert wide in (narrow, Verdict.inconclusive)


@given(numbers, widths, numbers)
def test_the_mirrored_claim_gets_the_same_verdict(value: float, half: float, margin: float) -> None:
    assert decide(around(value, half), "greater", margin) == decide(around(-value, half), "less", margin)


def test_decide_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="direction"):
        decide(around(1, 0), "higher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin"):
        decide(around(1, 0), "greater", math.nan)


def test_verdicts_differ_in_symbol_and_word() -> None:
    assert len({v.symbol for v in Verdict}) == len({v.word for v in Verdict}) == 5
    assert Verdict("not_comparable").label == "≠ not comparable"


@pytest.mark.parametrize(("printed", "half"), [("46.3", 0.05), ("46", 0.5), ("0.470", 0.0005), ("-9.77", 0.005)])
def test_rounding_of_printed_numbers(printed: str, half: float) -> None:
    assert rounding_half_width(printed) == half


def test_rounding_refuses_words() -> None:
    for printed in ("n/a", "nan"):
        with pytest.raises(ValueError, match="printed"):
            rounding_half_width(printed)


def test_equivalence_uses_margin_and_rounding() -> None:
    ours = Estimate(46.0, 45.3, 46.7, 5)
    assert equivalence_test(ours, 46.3, 1.1).verdict == Verdict.supported
    assert equivalence_test(ours, 46.3, 1.0).verdict == Verdict.inconclusive  # region ends at 45.3 exactly
    assert equivalence_test(ours, 46.3, 1.0, rounding_half_width("46.3")).verdict == Verdict.supported
    assert equivalence_test(ours, 50.0, 1.0).verdict == Verdict.contradicted
    assert equivalence_test(ours, 40.0, 1.0).verdict == Verdict.contradicted
    assert "± 1 (margin) ± 0.05 (rounding)" in equivalence_test(ours, 46.3, 1.0, 0.05).sentence


def test_few_seeds_are_inconclusive_not_equal() -> None:
    assert equivalence_test([44.0, 46.0, 49.0], 46.3, 1.0).verdict == Verdict.inconclusive
    assert equivalence_test([46.3], 46.3, 1.0).verdict == Verdict.inconclusive


@given(st.lists(numbers, min_size=2, max_size=8), numbers, st.floats(0.1, 50))
def test_inclusion_is_two_one_sided_tests(values: list[float], target: float, margin: float) -> None:
    result = equivalence_test(values, target, margin)
    assert result.p_value is not None
    if abs(result.p_value - 0.025) > 1e-6 and np.ptp(values) > 0:
        assert (result.verdict == Verdict.supported) == (result.p_value < 0.025)


def test_tost_p_value_is_the_larger_of_scipys_two() -> None:
    values = [45.8, 46.1, 46.9, 46.4]
    upper = stats.ttest_1samp(values, 47.5, alternative="less").pvalue
    lower = stats.ttest_1samp(values, 45.5, alternative="greater").pvalue
    assert tost_p_value(values, 46.5, 1.0) == pytest.approx(max(upper, lower))


@pytest.mark.parametrize(
    ("effect", "power", "n"),
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.9, 44), (0.8, 0.9, 19)],
)
def test_seeds_needed_agrees_with_published_tables(effect: float, power: float, n: int) -> None:
    assert seeds_needed(1.0, effect, power) == n == seeds_needed(2.0, -2 * effect, power)
    assert paired_t_power(n - 1, effect, 1.0) < power <= paired_t_power(n, effect, 1.0)


def test_seeds_needed_from_differences_and_its_edges() -> None:
    assert seeds_needed([1.0, 2.0, 3.0], 0.5) == 34
    assert seeds_needed(0.0, 0.1) == 2
    assert seeds_needed(1.0, 0.001) > 7_000_000
    for call in (
        lambda: seeds_needed(1.0, 0.0),
        lambda: seeds_needed([1.0], 1.0),
        lambda: seeds_needed(-1.0, 1.0),
    ):
        with pytest.raises(ValueError):
            call()


def test_power_is_what_a_simulation_finds() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, (20_000, 6))
    found = np.mean(stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05)
    assert paired_t_power(6, 1.0, 1.0) == pytest.approx(found, abs=0.01)


def test_spread_of_three_seeds_is_hardly_known() -> None:
    assert sd_interval([1.0, 2.0, 3.0]) == pytest.approx((0.5207, 6.2847), abs=1e-3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_nothing_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert np.all(adjusted >= np.array(p)) and np.all(adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_note_counts_what_remains() -> None:
    note = multiple_comparison_note([0.001, 0.03, 0.04, 0.2])
    assert "Of 4 comparisons" in note and "3 exclude zero (about 0.2" in note and "1 remains." in note


def test_p_value_and_interval_agree() -> None:
    for values in np.random.default_rng(3).normal(1, 1, (50, 4)):
        assert (mean_p_value(values) < 0.05) == (not mean_interval(values).contains(0))


def test_probability_of_improvement_by_hand() -> None:
    estimate = probability_of_improvement([1, 2, 3], [0, 1, 3])
    # 1 beats 0 and ties 1; 2 beats 0 and 1; 3 beats 0 and 1 and ties 3
    assert estimate.value == pytest.approx((1.5 + 2 + 2.5) / 9)
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    first, second = np.random.default_rng(0).normal(size=(2, 8))
    expected = stats.mannwhitneyu(first, second).statistic / 64
    assert probability_of_improvement(first, second).value == pytest.approx(expected)
    assert probability_of_improvement(first, second, better="lower").value == pytest.approx(1 - expected)


def test_separated_runs_keep_an_uncertain_end() -> None:
    estimate = probability_of_improvement([5, 6, 7], [1, 2, 3])
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.025 ** (1 / 3))  # three independent pairs, all won


def test_tasks_are_averaged_and_resampled_apart() -> None:
    first, second = np.array([[5.0, 0.0]] * 3), np.array([[1.0, 9.0]] * 3)
    assert probability_of_improvement(first, second).value == 0.5
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(first, second[:, :1])
