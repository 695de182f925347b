"""The note on multiple comparisons that stands under every table of verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from repro.evidence.judgement import ClaimVerdict, direction_of
from repro.evidence.measurements import Measurements
from repro.evidence.multiplicity import mean_p_value, multiple_comparison_note


def comparison_note(verdicts: Sequence[ClaimVerdict], measured: Measurements) -> str:
    """How many of the distinct paired comparisons behind `verdicts` stand alone, by chance, and after Holm.

    Empty where no comparison is paired.
    """
    orderings = (direction_of(part.requirement) for verdict in verdicts for part in verdict.judged_parts)
    cells = {ordering.cells for ordering in orderings if ordering is not None}
    pairs = [measured.pairs(*sorted(both)) for both in {frozenset(c) for c in cells} if len(both) == 2]
    p_values = [mean_p_value(pair.values) for pair in pairs if pair is not None]
    return multiple_comparison_note(p_values) if p_values else ""
