"""Measured coverage of every interval on simulated runs with a known truth.

`python -m repro.evidence.coverage` prints the table of `docs/statistics.md`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from repro.evidence.improvement import probability_of_improvement
from repro.evidence.intervals import (
    Estimate,
    bootstrap_statistic,
    crossed_bounds,
    image_interval,
    student_bounds,
    unpaired_interval,
    weighted_mean,
)

Floats = NDArray[np.float64]
Rng = np.random.Generator
SizedEstimate = Callable[[int, int], Estimate]

SEED_COUNTS = (3, 5, 10)
IMAGE_COUNTS = (100, 300)


@dataclass(frozen=True)
class SeedScenario:
    """A distribution of per-seed values with known mean: `draw(rng, (simulations, seeds))`."""

    name: str
    truth: float
    draw: Callable[[Rng, tuple[int, int]], Floats]
    promised: bool = True
    """False for skew so strong that Student's t is known to fall short; measured all the same."""


@dataclass(frozen=True)
class CrossedScenario:
    """Standard deviations of seed, image and remaining effects of a seeds × images design with mean 0."""

    name: str
    seed_sd: float
    image_sd: float
    rest_sd: float
    images: int = 100
    promised: bool = True
    skewed_images: bool = False
    """Image effects from a (centred) exponential instead of a normal distribution."""

    def draw(self, rng: Rng, simulations: int, seeds: int) -> Floats:
        """Values (simulations, seeds, images)."""
        shape = (simulations, 1, self.images)
        image = rng.exponential(size=shape) - 1 if self.skewed_images else rng.normal(size=shape)
        return (
            self.seed_sd * rng.normal(size=(simulations, seeds, 1))
            + self.image_sd * image
            + self.rest_sd * rng.normal(size=(simulations, seeds, self.images))
        )


@dataclass(frozen=True)
class CoverageRow:
    """One line of the table: share of simulations whose 95 % interval held the truth, per sample size."""

    data: str
    interval: str
    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    promised: bool


def _near_ceiling(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Accuracy in % on 1,000 images around 98 %: beta between seeds, binomial within."""
    return rng.binomial(1000, rng.beta(490, 10, shape)) / 10


def _paired_normal(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Two methods share a strong seed effect; the difference has mean 1 and unequal spreads."""
    shared = 5 * rng.normal(size=shape)
    return (71 + shared + rng.normal(size=shape)) - (70 + shared + 2 * rng.normal(size=shape))


def _paired_near_ceiling(rng: Rng, shape: tuple[int, int]) -> Floats:
    """Two accuracies near 98 % and 97 % from seeds of the same quality."""
    quality = rng.beta(490, 10, shape)
    return (rng.binomial(1000, quality) - rng.binomial(1000, quality - 0.01)) / 10


def _paired_skewed(rng: Rng, shape: tuple[int, int]) -> Floats:
    return rng.lognormal(0, 0.4, shape) - rng.lognormal(0, 0.2, shape)


SEED_SCENARIOS = (
    SeedScenario("normal", 70.0, lambda rng, shape: rng.normal(70, 2, shape)),
    SeedScenario("mildly skewed (log-normal, σ = 0.3)", np.exp(0.045), lambda rng, shape: rng.lognormal(0, 0.3, shape)),
    SeedScenario("near the ceiling (accuracy about 98 %)", 98.0, _near_ceiling),
    SeedScenario("paired difference, normal", 1.0, _paired_normal),
    SeedScenario("paired difference, skewed", np.exp(0.08) - np.exp(0.02), _paired_skewed),
    SeedScenario("paired difference, near the ceiling", 1.0, _paired_near_ceiling),
    SeedScenario(
        "strongly skewed (log-normal, σ = 0.5)",
        np.exp(0.125),
        lambda rng, shape: rng.lognormal(0, 0.5, shape),
        promised=False,
    ),
    SeedScenario(
        "strongly skewed (beta(98, 2), in %)",
        98.0,
        lambda rng, shape: 100 * rng.beta(98, 2, shape),
        promised=False,
    ),
)

CROSSED_SCENARIOS = (
    CrossedScenario("seeds dominate", 1, 3, 3),
    CrossedScenario("seeds and images balanced", 1, 10, 10),
    CrossedScenario("images dominate", 0.1, 10, 3),
    CrossedScenario("seed × image noise dominates", 0.5, 3, 6),
    CrossedScenario("skewed images", 0.5, 10, 5, skewed_images=True),
    CrossedScenario("pure noise", 0, 0, 1, promised=False),
)


def covered(bounds: tuple[Floats, Floats], truth: float) -> float:
    """Share of the intervals that hold `truth`."""
    return float(np.mean((bounds[0] <= truth) & (truth <= bounds[1])))


def seed_coverage(scenario: SeedScenario, seeds: int, simulations: int, rng: Rng) -> float:
    """Coverage of the 95 % interval of `mean_interval` (and of `paired_interval`, given differences)."""
    return covered(student_bounds(scenario.draw(rng, (simulations, seeds)), 0.95), scenario.truth)


def crossed_coverage(scenario: CrossedScenario, seeds: int, simulations: int, rng: Rng) -> float:
    """Coverage of the 95 % interval of `two_level_interval`, simulated in blocks of 500 to bound memory."""
    blocks = [scenario.draw(rng, 500, seeds) for _ in range(simulations // 500)]
    return float(np.mean([covered(crossed_bounds(block, 0.95), 0.0) for block in blocks]))


def percentile_coverage(scenario: SeedScenario, seeds: int, simulations: int, rng: Rng) -> float:
    """Coverage of the percentile bootstrap over seeds that this package does not use, for comparison."""
    values = scenario.draw(rng, (simulations, seeds))
    index = rng.integers(0, seeds, size=(1000, seeds))
    means = values[:, index].mean(axis=-1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    return covered((low, high), scenario.truth)


def call_coverage(estimate: SizedEstimate, n: int, truth: float, simulations: int) -> float:
    """Coverage of `estimate(n, simulation)`, one call of a public function per simulation."""
    return float(np.mean([estimate(n, index).contains(truth) for index in range(simulations)]))


def _average_drop(n: int, index: int) -> Estimate:
    """Skewed per-image drops with a spike at 0, mean 5."""
    rng = np.random.default_rng([1, index])
    drops = rng.exponential(10, n) * (rng.random(n) < 0.5)
    return bootstrap_statistic(drops, weighted_mean, interval="bca", resamples=1000, seed=index)


def _win_rate(n: int, index: int) -> Estimate:
    rng = np.random.default_rng([2, index])
    return image_interval(100.0 * (rng.random(n) < 0.97), bounds=(0, 100))


_THRESHOLDS = np.linspace(0, 1, 40)


def _hits(rng: Rng, n: int, flat: bool) -> Floats:
    """Box hits (n, 40): each image is hit over a run of thresholds; peaked or with a broad plateau."""
    start = rng.uniform(-0.6, 1, (n, 1)) if flat else rng.beta(2, 6, (n, 1))
    width = np.full((n, 1), 0.6) if flat else 0.6 * rng.beta(3, 4, (n, 1))
    return ((start <= _THRESHOLDS) & (start + width >= _THRESHOLDS)).astype(np.float64)


def _best_peaked(n: int, index: int) -> Estimate:
    return _best_threshold(n, index, flat=False)


def _best_plateau(n: int, index: int) -> Estimate:
    return _best_threshold(n, index, flat=True)


def _best_threshold(n: int, index: int, flat: bool) -> Estimate:
    hits = _hits(np.random.default_rng([3, index]), n, flat)
    return bootstrap_statistic(hits, resamples=400, seed=index)


def _best_threshold_truth(flat: bool) -> float:
    return float(_hits(np.random.default_rng(0), 500_000, flat).mean(axis=0).max())


def _welch(seeds: int, index: int) -> Estimate:
    rng = np.random.default_rng([4, index])
    return unpaired_interval(rng.normal(71, 1, seeds), rng.normal(70, 2, seeds))


def _improvement(seeds: int, index: int) -> Estimate:
    rng = np.random.default_rng([5, index])
    return probability_of_improvement(rng.normal(1, 1, seeds), rng.normal(0, 1, seeds), resamples=1000, seed=index)


def seed_rows(simulations: int) -> list[CoverageRow]:
    """Rows over seeds, over seeds and images, and the naive bootstrap beside them."""
    rng = np.random.default_rng(0)
    rows = []
    for scenario in SEED_SCENARIOS:
        shares = tuple(seed_coverage(scenario, n, simulations, rng) for n in SEED_COUNTS)
        rows.append(CoverageRow(scenario.name, "Student t", SEED_COUNTS, shares, scenario.promised))
    for crossed in CROSSED_SCENARIOS:
        shares = tuple(crossed_coverage(crossed, n, simulations, rng) for n in SEED_COUNTS)
        name = f"seeds × {crossed.images} images: {crossed.name}"
        rows.append(CoverageRow(name, "Satterthwaite t", SEED_COUNTS, shares, crossed.promised))
    shares = tuple(percentile_coverage(SEED_SCENARIOS[0], n, simulations, rng) for n in SEED_COUNTS)
    rows.append(CoverageRow("normal", "percentile bootstrap (not used)", SEED_COUNTS, shares, promised=False))
    return rows


def call_rows(simulations: int) -> list[CoverageRow]:
    """Rows measured through the public functions, one call per simulation."""
    improvement = float(norm.cdf(1 / np.sqrt(2)))
    peaked, plateau = _best_threshold_truth(flat=False), _best_threshold_truth(flat=True)
    normal = "bias-corrected normal bootstrap"
    cases: list[tuple[str, str, SizedEstimate, float, tuple[int, ...], bool]] = [
        ("unpaired difference, unequal spreads", "Welch t", _welch, 1.0, SEED_COUNTS, True),
        (
            "probability of improvement 0.76",
            "percentile bootstrap",
            _improvement,
            improvement,
            SEED_COUNTS,
            False,
        ),
        ("images: skewed drops, half of them 0", "BCa bootstrap", _average_drop, 5.0, IMAGE_COUNTS, True),
        ("images: win rate of 97 %", "Wilson score", _win_rate, 97.0, IMAGE_COUNTS, True),
        ("images: best of 40 thresholds, peaked", normal, _best_peaked, peaked, IMAGE_COUNTS, False),
        ("images: best of 40 thresholds, plateau", normal, _best_plateau, plateau, IMAGE_COUNTS, False),
    ]
    rows = []
    for name, interval, estimate, truth, sizes, promised in cases:
        shares = tuple(call_coverage(estimate, n, truth, simulations) for n in sizes)
        rows.append(CoverageRow(name, interval, sizes, shares, promised))
    return rows


def markdown_table(rows: list[CoverageRow]) -> str:
    """The rows as a Markdown table; `†` marks what is measured but not promised."""
    lines = ["| data | interval | n | coverage of the 95 % interval |", "|---|---|---|---|"]
    for row in rows:
        mark = "" if row.promised else " †"
        sizes = " / ".join(str(size) for size in row.sizes)
        shares = " / ".join(f"{100 * share:.1f}" for share in row.shares)
        lines.append(f"| {row.data}{mark} | {row.interval} | {sizes} | {shares} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table(seed_rows(simulations=20_000) + call_rows(simulations=1_000)))
