"""What can be said about a claim, and the only rule by which an interval says it."""

import math
from enum import StrEnum
from typing import Literal

from repro.evidence.estimate import Estimate

Direction = Literal["greater", "less"]


class Verdict(StrEnum):
    """The five things a run can say about a claim; shown as symbol and word, never by colour alone."""

    supported = "supported"
    """The whole interval lies where the claim puts it."""
    contradicted = "contradicted"
    """The whole interval lies where the claim says it does not."""
    inconclusive = "inconclusive"
    """The interval lies on both sides, or touches the boundary: more seeds are needed."""
    not_comparable = "not_comparable"
    """The run differs from the paper's in data, network or size; the difference list says how."""
    not_run = "not_run"
    """No record holds the rows the claim needs."""

    @property
    def symbol(self) -> str:
        """One character, distinct in shape for each verdict."""
        return _SYMBOLS[self]

    @property
    def word(self) -> str:
        """The verdict as a reader says it, e.g. "not comparable"."""
        return self.value.replace("_", " ")

    @property
    def label(self) -> str:
        """Symbol and word together, e.g. "✓ supported"."""
        return f"{self.symbol} {self.word}"


_SYMBOLS = {
    Verdict.supported: "✓",
    Verdict.contradicted: "✗",
    Verdict.inconclusive: "?",
    Verdict.not_comparable: "≠",
    Verdict.not_run: "–",
}


def decide(difference: Estimate, direction: Direction, margin: float = 0.0) -> Verdict:
    """Verdict on "the difference is greater (less) than zero by more than `margin`".

    `direction="greater"` claims `difference > margin`, `"less"` claims `difference < -margin`, in the unit of
    the difference. Supported if the whole interval lies strictly inside the claimed side, contradicted if it
    lies strictly on the other side, otherwise inconclusive; an end that touches the boundary decides nothing.
    A negative margin claims "not worse by more than |margin|".

    Raises `ValueError` for an unknown direction or a margin that is not finite.
    """
    if direction not in ("greater", "less"):
        raise ValueError(f"direction is {direction!r}: expected 'greater' or 'less'")
    if not math.isfinite(margin):
        raise ValueError(f"margin is {margin}: expected a finite number in the unit of the difference")
    low, high = (difference.low, difference.high) if direction == "greater" else (-difference.high, -difference.low)
    if low > margin:
        return Verdict.supported
    if high < margin:
        return Verdict.contradicted
    return Verdict.inconclusive
