"""The 95 % interval covers the truth in 93–97 % of 2,000 simulated runs at 3, 5 and 10 seeds."""

import numpy as np
import pytest

from repro.evidence import coverage
from repro.evidence.intervals import crossed_bounds, mean_interval, student_bounds, two_level_interval

SIMULATIONS = 2000


@pytest.mark.parametrize("seeds", coverage.SEED_COUNTS)
@pytest.mark.parametrize("scenario", [s for s in coverage.SEED_SCENARIOS if s.promised], ids=lambda s: s.name)
def test_interval_over_seeds_covers(scenario: coverage.SeedScenario, seeds: int) -> None:
    share = coverage.seed_coverage(scenario, seeds, SIMULATIONS, np.random.default_rng(10 + seeds))
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("seeds", coverage.SEED_COUNTS)
@pytest.mark.parametrize("scenario", [s for s in coverage.CROSSED_SCENARIOS if s.promised], ids=lambda s: s.name)
def test_interval_over_seeds_and_images_covers(scenario: coverage.CrossedScenario, seeds: int) -> None:
    share = coverage.crossed_coverage(scenario, seeds, SIMULATIONS, np.random.default_rng(20 + seeds))
    assert 0.93 <= share <= 0.97


def test_pure_noise_is_covered_conservatively() -> None:
    noise = next(s for s in coverage.CROSSED_SCENARIOS if s.name == "pure noise")
    assert coverage.crossed_coverage(noise, 3, SIMULATIONS, np.random.default_rng(0)) >= 0.93


def test_unpaired_difference_covers() -> None:
    assert 0.93 <= coverage.call_coverage(coverage._welch, 5, 1.0, SIMULATIONS) <= 0.97


def test_the_percentile_bootstrap_over_seeds_would_not_cover() -> None:
    normal = coverage.SEED_SCENARIOS[0]
    assert coverage.percentile_coverage(normal, 3, SIMULATIONS, np.random.default_rng(0)) < 0.85


def test_simulated_bounds_are_those_of_the_public_functions() -> None:
    values = np.random.default_rng(0).normal(size=(4, 5, 20))
    for index, bounds in enumerate(zip(*student_bounds(values[:, :, 0], 0.95), strict=True)):
        estimate = mean_interval(values[index, :, 0])
        assert (estimate.low, estimate.high) == pytest.approx(bounds)
    for index, bounds in enumerate(zip(*crossed_bounds(values, 0.95), strict=True)):
        estimate = two_level_interval(values[index])
        assert (estimate.low, estimate.high) == pytest.approx(bounds)


def test_table_marks_what_is_not_promised() -> None:
    rows = coverage.seed_rows(simulations=500)
    table = coverage.markdown_table(rows)
    assert len(table.splitlines()) == 2 + len(rows)
    assert all(("†" in line) == (not row.promised) for line, row in zip(table.splitlines()[2:], rows, strict=True))
