"""All statistics of the evidence package under one name; `docs/statistics.md` says which to use where."""

from repro.evidence.bootstrap import best_threshold_mean, bootstrap_statistic, weighted_mean
from repro.evidence.equivalence import Equivalence, equivalence_test, rounding_half_width
from repro.evidence.estimate import Estimate
from repro.evidence.improvement import probability_of_improvement
from repro.evidence.intervals import (
    image_interval,
    mean_interval,
    paired_interval,
    two_level_interval,
    unpaired_interval,
)
from repro.evidence.multiplicity import holm, mean_p_value, multiple_comparison_note, paired_p_value
from repro.evidence.power import paired_t_power, sd_interval, seeds_needed
from repro.evidence.verdicts import Direction, Verdict, decide

__all__ = [
    "Direction",
    "Equivalence",
    "Estimate",
    "Verdict",
    "best_threshold_mean",
    "bootstrap_statistic",
    "decide",
    "equivalence_test",
    "holm",
    "image_interval",
    "mean_interval",
    "mean_p_value",
    "multiple_comparison_note",
    "paired_interval",
    "paired_p_value",
    "paired_t_power",
    "probability_of_improvement",
    "rounding_half_width",
    "sd_interval",
    "seeds_needed",
    "two_level_interval",
    "unpaired_interval",
    "weighted_mean",
]
