"""The verdict on one requirement of a claim."""

from __future__ import annotations

from dataclasses import dataclass

from repro.evidence.estimate import Estimate
from repro.evidence.requirements import Equals, Requirement
from repro.evidence.settings import Difference
from repro.evidence.verdicts import Verdict


@dataclass(frozen=True)
class PartVerdict:
    """One requirement of a claim.

    `verdict` speaks of the paper's own setting. Where that is `not_comparable`, `in_our_data` is what our data say
    on the same ordering, None where nothing can be said (values, or two tables run on different data).
    """

    requirement: Requirement
    verdict: Verdict
    in_our_data: Verdict | None
    quantity: Estimate | None
    differences: tuple[Difference, ...] = ()

    @property
    def is_quoted(self) -> bool:
        """Whether it is about a number the text quotes, not about an ordering."""
        return isinstance(self.requirement, Equals)

    @property
    def judged(self) -> Verdict | None:
        """The verdict by measured numbers, in whichever setting; None where there is none."""
        if self.verdict in (Verdict.not_comparable, Verdict.not_run):
            return self.in_our_data
        return self.verdict
