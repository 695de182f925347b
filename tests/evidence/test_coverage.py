"""The small version of `benchmarks/coverage.py`: every interval on the shapes of committed records, null claims."""

import importlib.util
import math
import sys

import pytest

from repro.project import code_root

SPEC = importlib.util.spec_from_file_location("coverage_simulation", code_root() / "benchmarks" / "coverage.py")
simulation = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = simulation  # dataclasses look their module up
SPEC.loader.exec_module(simulation)

STUDIES = 250
CHANCE = 3 * math.sqrt(0.05 * 0.95 / STUDIES)
UNCOVERED = {  # as docs/statistics.md says
    "logit drop with one outlier (13)",
    "strongly skewed (log-normal, σ = 0.5)",
    "…, one method three times as noisy, that one",
}


@pytest.fixture(scope="module")
def lines():
    sizes, simulation.IMAGES = simulation.IMAGES, (50, 200)
    found = [*simulation.image_lines(STUDIES), *simulation.seed_lines(STUDIES)]
    simulation.IMAGES = sizes
    return found


def test_every_interval_covers_what_it_promises(lines):
    assert len(lines) == 27
    short = {line.data for line in lines if min(line.covered) < 0.93 - CHANCE}
    assert short <= UNCOVERED


def test_what_an_outlier_carries_is_mostly_refused(lines):
    (line,) = [line for line in lines if line.data.startswith("logit drop")]
    assert min(line.refused) > 0.3


@pytest.mark.parametrize("parts", [1, 12])
@pytest.mark.parametrize("name", simulation.NULLS)
def test_null_claims_are_decided_in_at_most_a_fortieth_each_way(name, parts):
    rates = simulation.null_rates(simulation.NULLS[name], parts, STUDIES)
    assert max(rates) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / STUDIES)
