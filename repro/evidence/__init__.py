"""Published numbers, claims, readings, records, statistics and verdicts."""

from repro.evidence.estimate import Estimate
from repro.evidence.verdicts import Verdict, decide

__all__ = ["Estimate", "Verdict", "decide"]
