"""From records to answers: a verdict for every printed cell and every claim, each with the sentence why.

Two questions are kept apart. *In the paper's own setting*: does the number, the ordering hold on the paper's data
and network? *In our data* (transfer): where a run used other data or another network, does the ordering, the
direction of the gap, the trend hold there? Values never transfer. A smoke run answers neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repro.evidence.cells import CellAddress
from repro.evidence.claims import Claim, claims_for, load_claims
from repro.evidence.comparison import CellComparison, compare
from repro.evidence.equivalence import equivalence_test, rounding_half_width
from repro.evidence.estimate import Estimate
from repro.evidence.measurements import Measurements
from repro.evidence.part_verdict import PartVerdict
from repro.evidence.planning import Need, units_needed
from repro.evidence.published import Paper, published_table
from repro.evidence.record import Record
from repro.evidence.requirements import Equals, Exceeds, Requirement
from repro.evidence.sentences import cell_sentence, claim_sentence
from repro.evidence.settings import Difference, decisive_differences, expected_source, source_differences
from repro.evidence.verdicts import Verdict

SMOKE_REASON = "A smoke run checks the plumbing on embedded data; it never gets a verdict."
PERCENT_MARGIN = 1.0
RELATIVE_MARGIN = 0.1


@dataclass(frozen=True)
class CellVerdict:
    """Does our number match the printed one? By equivalence within a stated margin, never by overlap."""

    cell: CellComparison
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class ClaimVerdict:
    """The answer to one claim.

    `verdict` is about the paper's own setting and needs every part. `judged` is the conjunction over the parts that
    could be judged, in our data where `transfer` is set; None where no part could.
    """

    claim: Claim
    verdict: Verdict
    judged: Verdict | None
    transfer: bool
    parts: tuple[PartVerdict, ...]
    reason: str
    need: Need | None

    @property
    def judged_parts(self) -> list[PartVerdict]:
        """The parts behind `judged`."""
        return [part for part in self.parts if part.judged is not None]

    @property
    def deciding(self) -> PartVerdict | None:
        """The judged part that decided: of those with the verdict `judged`, the least favourable one."""
        return deciding_part(self.parts, self.judged)

    @property
    def quantity(self) -> Estimate | None:
        """The deciding part's measured quantity with its interval."""
        return self.deciding.quantity if self.deciding else None

    @property
    def scope(self) -> str:
        """What `judged` speaks of, e.g. "in our data, 12 of 18 comparisons"; empty where it is `verdict` itself."""
        if self.judged is None or self.judged == self.verdict:
            return ""
        where = "in our data" if self.transfer else "measured part"
        return f"{where}, {len(self.judged_parts)} of {len(self.parts)} comparisons"

    @property
    def label(self) -> str:
        """Both answers in words, e.g. "≠ not comparable; in our data, 3 of 3 comparisons: ✓ supported"."""
        own = self.verdict.label
        return f"{own}; {self.scope}: {self.judged.label}" if self.scope and self.judged else own


class Judge:
    """Verdicts over the records of one preset, by table id."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.measured = Measurements(records)
        self.smoke = any(record.preset == "smoke" for record in records.values())
        self._decisive = {id: tuple(decisive_differences(r)) for id, r in records.items()}

    def cells(self, table_id: str) -> list[CellVerdict]:
        """A verdict for every printed cell of a table, in printed order."""
        record = self.measured.records.get(table_id)
        if record is None:
            return []
        return [self._cell(record, cell) for cell in compare(record) if cell.published is not None]

    def claim(self, claim: Claim) -> ClaimVerdict:
        """Judge one claim by the records at hand."""
        parts = tuple(self._part(requirement) for requirement in claim.requirements)
        if self.smoke:
            reason = SMOKE_REASON
            return ClaimVerdict(claim, Verdict.not_comparable, None, False, parts, reason, None)
        verdict = _worst([part.verdict for part in parts])
        found = [part.judged for part in parts if part.judged is not None]
        judged = _worst(found) if found else None
        transfer = any(part.in_our_data is not None for part in parts)
        decider = deciding_part(parts, judged)
        need = None
        if decider is not None and decider.judged == Verdict.inconclusive:
            need = units_needed(self.measured, decider.requirement, decider.quantity)
        reason = claim_sentence(claim, parts, decider, need)
        return ClaimVerdict(claim, verdict, judged, transfer, parts, reason, need)

    def claims(self, paper: Paper) -> list[ClaimVerdict]:
        """Every claim of a paper, in its order."""
        return [self.claim(claim) for claim in load_claims(paper)]

    def claims_of_table(self, table_id: str) -> list[ClaimVerdict]:
        """The claims that rest on at least one cell of a table."""
        return [self.claim(claim) for claim in claims_for(table_id)]

    def differences(self, address: CellAddress) -> tuple[Difference, ...]:
        """Why a measured cell is not comparable with the printed one; empty if it is."""
        record = self.measured.records[address.table]
        own = source_differences(address, self.measured.rows(address), record)
        return (*own, *self._decisive[address.table])

    def _cell(self, record: Record, cell: CellComparison) -> CellVerdict:
        address = CellAddress.of(record.id, cell.method, cell.metric, cell.setting)
        if self.smoke:
            return CellVerdict(cell, Verdict.not_comparable, SMOKE_REASON)
        if cell.ours is None or cell.published is None:
            return CellVerdict(cell, Verdict.not_run, "No row of the record stands for this cell.")
        differences = self.differences(address)
        if differences:
            return CellVerdict(cell, Verdict.not_comparable, cell_sentence(cell, differences, None))
        rounding = rounding_half_width(cell.published.printed)
        outcome = equivalence_test(cell.ours, cell.published.value, cell_margin(cell), rounding)
        return CellVerdict(cell, outcome.verdict, cell_sentence(cell, (), outcome))

    def _part(self, requirement: Requirement) -> PartVerdict:
        if self.smoke:
            return PartVerdict(requirement, Verdict.not_comparable, None, None)
        quantity = requirement.quantity(self.measured.evidence)
        if quantity is None:
            return PartVerdict(requirement, Verdict.not_run, None, None)
        differences = tuple(dict.fromkeys(d for cell in requirement.cells for d in self.differences(cell)))
        if not differences:
            return PartVerdict(requirement, requirement.judge(quantity, exact=False), None, quantity)
        return self._transferred(requirement, quantity, differences)

    def _transferred(
        self, requirement: Requirement, quantity: Estimate, differences: tuple[Difference, ...]
    ) -> PartVerdict:
        """What our data say on an ordering, or on the direction of a gap; a value does not transfer."""
        judged = None
        direction = direction_of(requirement)
        if direction is not None and self._same_run(*direction.cells):
            judged = direction.judge(quantity, exact=False)
        return PartVerdict(requirement, Verdict.not_comparable, judged, quantity, differences)

    def _same_run(self, first: CellAddress, second: CellAddress) -> bool:
        """Whether two cells that share data set (network) in the paper share it in our runs too."""
        wanted = zip(expected_source(first), expected_source(second), strict=True)
        found = zip(self._source(first), self._source(second), strict=True)
        return all(a != b or ours == other for (a, b), (ours, other) in zip(wanted, found, strict=True))

    def _source(self, address: CellAddress) -> tuple[set[str], set[str]]:
        rows = self.measured.rows(address)
        return {row.dataset for row in rows}, {row.network for row in rows}


def cell_margin(cell: CellComparison) -> float:
    """What a reproduction may miss a printed cell by: 1 point of a percentage, else a tenth of the printed value.

    Where the paper prints ±, that is taken if it is larger: a repetition of its own would miss by as much.
    """
    if cell.published is None:
        raise ValueError(f"{cell.method_label}, {cell.metric_label}: nothing is printed, so there is no margin")
    plain = PERCENT_MARGIN if cell.unit == "%" else max(RELATIVE_MARGIN * abs(cell.published.value), 1e-12)
    return max(plain, cell.published.spread or 0.0)


def direction_of(requirement: Requirement) -> Exceeds | None:
    """The ordering inside a requirement: its own, or "ahead at all" for a gap quoted as positive."""
    if isinstance(requirement, Exceeds):
        return requirement
    if requirement.minus is None or float(requirement.quoted) <= 0:
        return None
    # `Equals` already carries the sign of the metric: its first cell is the larger one where the claim holds.
    return Exceeds(requirement.cell, requirement.minus, "higher")


def deciding_part(parts: Sequence[PartVerdict], judged: Verdict | None) -> PartVerdict | None:
    """Of the parts judged as `judged`, the least favourable to the claim."""
    candidates = [part for part in parts if part.judged == judged and part.quantity is not None]
    return min(candidates, key=_favour) if judged is not None and candidates else None


def margin_of(requirement: Requirement) -> float:
    """What the advantage must exceed; 0 for a quoted value or gap."""
    return requirement.margin if isinstance(requirement, Exceeds) else 0.0


def tables_of(paper: Paper) -> list[str]:
    """The tables a paper's claims are listed under, in the claims' order."""
    return list(dict.fromkeys(claim.tables[0] for claim in load_claims(paper)))


def table_title(table_id: str) -> str:
    """Printed place and title, e.g. "Table 3, §5.2: ResNet-18 on ImageNet"."""
    table = published_table(table_id)
    return f"{table.source}: {table.title}"


_ORDER = (
    Verdict.contradicted,
    Verdict.not_comparable,
    Verdict.not_run,
    Verdict.inconclusive,
    Verdict.supported,
)


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return min(verdicts, key=_ORDER.index)


def _favour(part: PartVerdict) -> float:
    assert part.quantity is not None
    if isinstance(part.requirement, Equals) and part.in_our_data is None:
        return -abs(part.quantity.value - float(part.requirement.quoted))
    return part.quantity.value - margin_of(part.requirement)
