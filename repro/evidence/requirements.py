"""What a claim demands of the numbers: one cell above another, or a cell (or difference) at a quoted value.

Every claim is a conjunction of such requirements. To assert all of them at level α, each may be tested at
level α (intersection-union test), so no correction for multiplicity is needed inside a claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from repro.evidence.decisions import Verdict, decide
from repro.evidence.intervals import Estimate
from repro.evidence.published import CellAddress, SettingValue, rounding_interval

Direction = Literal["lower", "higher"]

# Sums of two-decimal numbers in binary floating point; far below any printed digit.
_TOUCH = 1e-9


@runtime_checkable
class Lookup(Protocol):
    """Gives the estimate of one cell, or None where it was not measured or printed."""

    def __call__(self, method: str, metric: str, setting: Mapping[str, SettingValue], table: str, /) -> Estimate | None:
        """Estimate of (method, metric, setting) in `table`."""


@runtime_checkable
class PairedDifference(Protocol):
    """Gives the interval of first minus second cell from paired data, or None where the two are unpaired."""

    def __call__(self, first: CellAddress, second: CellAddress, /) -> Estimate | None:
        """Estimate of first - second."""


@dataclass(frozen=True)
class Evidence:
    """Numbers to judge claims by.

    Args:
        lookup: estimates of single cells.
        paired: intervals of differences that use the pairing of seeds or images; they are narrower than the
            difference of two intervals, which is the fallback.
        exact: True asks whether quoted numbers recompute within their printed digits (the paper against
            itself); False asks whether a run's interval lies inside quoted ± tolerance (equivalence).
    """

    lookup: Lookup
    paired: PairedDifference | None = None
    exact: bool = False

    def cell(self, address: CellAddress) -> Estimate | None:
        """Estimate of one cell."""
        return self.lookup(address.method, address.metric, dict(address.setting), address.table)

    def difference(self, first: CellAddress, second: CellAddress) -> Estimate | None:
        """Estimate of first - second; interval arithmetic unless paired data give a narrower one."""
        paired = self.paired(first, second) if self.paired else None
        a, b = self.cell(first), self.cell(second)
        if paired or a is None or b is None:
            return paired
        method = "difference of two intervals"
        return Estimate(a.value - b.value, a.low - b.high, a.high - b.low, min(a.n, b.n), method)


@dataclass(frozen=True)
class Exceeds:
    """`better` is better than `worse` by more than `margin` (in the metric's unit)."""

    better: CellAddress
    worse: CellAddress
    direction: Direction
    margin: float = 0.0

    @property
    def cells(self) -> tuple[CellAddress, ...]:
        """The cells this depends on."""
        return (self.better, self.worse)

    def quantity(self, evidence: Evidence) -> Estimate | None:
        """The advantage of `better`, positive when it is the better one."""
        if self.direction == "lower":
            return evidence.difference(self.worse, self.better)
        return evidence.difference(self.better, self.worse)

    def judge(self, quantity: Estimate, exact: bool) -> Verdict:
        """`decide` on the advantage; the whole interval must lie on one side of the margin.

        Exact: the ends are open, since 21.87 against 21.88 as printed is an ordering.
        """
        if exact:
            low = min(quantity.low + _TOUCH, quantity.value)
            high = max(quantity.high - _TOUCH, quantity.value)
            quantity = Estimate(quantity.value, low, high, quantity.n, quantity.method)
        return decide(quantity, "greater", self.margin)


@dataclass(frozen=True)
class Equals:
    """`cell`, or `cell` minus `minus`, has the value the text quotes."""

    cell: CellAddress
    minus: CellAddress | None
    quoted: str
    tolerance: float

    @property
    def cells(self) -> tuple[CellAddress, ...]:
        """The cells this depends on."""
        return (self.cell,) if self.minus is None else (self.cell, self.minus)

    def quantity(self, evidence: Evidence) -> Estimate | None:
        """The cell or the difference, in the sign in which it is quoted."""
        return evidence.cell(self.cell) if self.minus is None else evidence.difference(self.cell, self.minus)

    def judge(self, quantity: Estimate, exact: bool) -> Verdict:
        """Exact: printed digits are compatible. Otherwise equivalence within quoted ± tolerance."""
        low, high = rounding_interval(self.quoted)
        slack = 0.0 if exact else self.tolerance
        low, high = low - slack - _TOUCH, high + slack + _TOUCH
        if quantity.high < low or quantity.low > high:
            return Verdict.contradicted
        inside = low <= quantity.low and quantity.high <= high
        return Verdict.supported if exact or inside else Verdict.inconclusive


Requirement = Exceeds | Equals


@dataclass(frozen=True)
class RequirementOutcome:
    """One requirement with its verdict and the quantity it was judged by (None when not run)."""

    requirement: Requirement
    status: Verdict
    quantity: Estimate | None


@dataclass(frozen=True)
class ClaimOutcome:
    """The verdict on a claim, with every part it rests on."""

    claim: str
    status: Verdict
    parts: tuple[RequirementOutcome, ...]

    @property
    def deciding(self) -> RequirementOutcome:
        """The part that decided: of those with the claim's status, the one with the smallest quantity."""
        candidates = [part for part in self.parts if part.status == self.status]
        return min(candidates, key=lambda p: p.quantity.value if p.quantity else float("-inf"))

    @property
    def quantity(self) -> Estimate | None:
        """The deciding part's measured quantity with its interval."""
        return self.deciding.quantity


def judge_all(claim: str, requirements: Sequence[Requirement], evidence: Evidence) -> ClaimOutcome:
    """Verdict on the conjunction of `requirements`.

    One contradicted part contradicts the claim; otherwise one part that was not run leaves it not run, and
    one inconclusive part leaves it inconclusive.
    """
    parts = []
    for requirement in requirements:
        quantity = requirement.quantity(evidence)
        status = Verdict.not_run if quantity is None else requirement.judge(quantity, evidence.exact)
        parts.append(RequirementOutcome(requirement, status, quantity))
    order = (Verdict.contradicted, Verdict.not_run, Verdict.inconclusive, Verdict.supported)
    worst = min((part.status for part in parts), key=order.index)
    return ClaimOutcome(claim, worst, tuple(parts))
