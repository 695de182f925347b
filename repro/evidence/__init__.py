"""Published numbers, claims, readings, records, statistics and verdicts."""

from repro.evidence.claims import Claim, claims_for, load_claims, lookup_in, published_estimates
from repro.evidence.decisions import Verdict, decide
from repro.evidence.intervals import Estimate
from repro.evidence.published import (
    CellAddress,
    PublishedTable,
    grim_consistent,
    load_published,
    published_table,
    rounding_interval,
)
from repro.evidence.readings import Reading, drift, load_readings, readings_for
from repro.evidence.requirements import ClaimOutcome, Evidence

__all__ = [
    "CellAddress",
    "Claim",
    "ClaimOutcome",
    "Estimate",
    "Evidence",
    "PublishedTable",
    "Reading",
    "Verdict",
    "claims_for",
    "decide",
    "drift",
    "grim_consistent",
    "load_claims",
    "load_published",
    "load_readings",
    "lookup_in",
    "published_estimates",
    "published_table",
    "readings_for",
    "rounding_interval",
]
