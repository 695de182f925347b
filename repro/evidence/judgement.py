"""From records to answers: a verdict for every printed cell and every claim, each with the sentence why.

Two questions are kept apart. *In the paper's own setting*: does the number, the ordering hold on the paper's data
and network? *In our data* (transfer): where a run used other data or another network, does the ordering, the
direction of the gap, the trend hold there? Values never transfer. A smoke run answers neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from repro.evidence.claims import Claim, claims_for, load_claims
from repro.evidence.comparison import CellComparison, Measurements, Need, compare, units_needed
from repro.evidence.decisions import (
    Verdict,
    equivalence_test,
    mean_p_value,
    multiple_comparison_note,
    rounding_half_width,
)
from repro.evidence.intervals import Estimate
from repro.evidence.published import PAPERS, CellAddress, Paper, published_table
from repro.evidence.record import Record
from repro.evidence.requirements import Equals, Exceeds, Requirement
from repro.evidence.sentences import PartVerdict, cell_sentence, claim_sentence
from repro.evidence.settings import Difference, decisive_differences, expected_source, source_differences
from repro.files import write_text
from repro.project import UserError
from repro.vocabulary import Preset

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


# The note on multiple comparisons that stands under every table of verdicts.


def comparison_note(verdicts: Sequence[ClaimVerdict], measured: Measurements) -> str:
    """How many of the distinct paired comparisons behind `verdicts` stand alone, by chance, and after Holm.

    Empty where no comparison is paired.
    """
    orderings = (direction_of(part.requirement) for verdict in verdicts for part in verdict.judged_parts)
    cells = {ordering.cells for ordering in orderings if ordering is not None}
    pairs = [measured.pairs(*sorted(both)) for both in {frozenset(c) for c in cells} if len(both) == 2]
    p_values = [mean_p_value(pair.values) for pair in pairs if pair is not None]
    return multiple_comparison_note(p_values) if p_values else ""


# What we ourselves state in the README, machine-readable (`docs/stated.yaml`), held against the records.

Stated = dict[Preset, dict[str, Literal["supported", "contradicted", "inconclusive"]]]
_OPPOSITE = {Verdict.supported: Verdict.contradicted, Verdict.contradicted: Verdict.supported}
_HEADER = """# What the README states about the claims, per preset: claim id → verdict over the judged comparisons.
# Written by `repro verdicts --state`; `pytest --claims reports/<preset>` fails where the records say the opposite.
"""


@dataclass(frozen=True)
class StatedCheck:
    """One statement beside what the records say today."""

    claim: Claim
    stated: Verdict
    found: ClaimVerdict

    @property
    def contradicted(self) -> bool:
        """Whether the records say the opposite of what we state."""
        return self.found.judged is not None and _OPPOSITE.get(self.stated) == self.found.judged

    @property
    def confirmed(self) -> bool:
        """Whether the records say what we state."""
        return self.found.judged == self.stated


def load_stated(path: Path) -> Stated:
    """The statements of a file.

    Raises:
        UserError: the file is absent, or names an unknown preset, claim or verdict.
    """
    try:
        stated = TypeAdapter(Stated).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file; `repro verdicts --state` writes it") from None
    except ValidationError as error:
        raise UserError(f"{path.name}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    known = _claims()
    unknown = sorted({id for claims in stated.values() for id in claims} - set(known))
    if unknown:
        raise UserError(f"{path.name}: no claims of these ids: {', '.join(unknown)}")
    return stated


def check_stated(stated: Stated, preset: Preset, judge: Judge) -> list[StatedCheck]:
    """Every statement about one preset beside today's verdict."""
    claims = _claims()
    return [
        StatedCheck(claims[id], Verdict(verdict), judge.claim(claims[id]))
        for id, verdict in stated.get(preset, {}).items()
    ]


def write_stated(path: Path, preset: Preset, judge: Judge) -> int:
    """Replace one preset's statements by today's verdicts; returns how many there are.

    Raises:
        UserError: the preset is smoke, which never gets a verdict.
    """
    if preset == "smoke":
        raise UserError("a smoke run gives no verdict, so there is nothing to state: use --preset quick or paper")
    stated = load_stated(path) if path.exists() else {}
    found = {id: judged.value for id, claim in _claims().items() if (judged := judge.claim(claim).judged)}
    merged = {**stated, preset: found}
    write_text(path, _HEADER + yaml.safe_dump(merged, sort_keys=True))
    return len(found)


def _claims() -> dict[str, Claim]:
    return {claim.id: claim for paper in PAPERS for claim in load_claims(paper)}
