"""From records to answers: a verdict for every printed cell and every claim, each with the sentence why.

Two questions are kept apart. *In the paper's own setting*: does the number, the ordering hold on the paper's data
and network? *In our data* (transfer): where a run used other data or another network, does the ordering, the
direction of the gap, the trend hold there? Values never transfer. A smoke run answers neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter, ValidationError
from scipy.stats import false_discovery_control

from repro.catalogue import PAPERS
from repro.evidence.claims import Claim, Requirement, claims_for, direction_of, load_claims, load_paper_claims, under
from repro.evidence.comparison import ONE_TRAINING, CellComparison, Measurements, compare, doubts
from repro.evidence.decisions import Region, Verdict, decide, multiple_comparison_note
from repro.evidence.published import CellAddress, SettingValue, published_table, rounding_interval
from repro.evidence.readings import metric_readings
from repro.evidence.record import Record
from repro.evidence.sentences import PartVerdict, cell_sentence, claim_sentence
from repro.evidence.settings import Difference, decisive_differences, expected_source, source_differences
from repro.evidence.statistics import Estimate, with_doubt
from repro.files import write_text
from repro.project import UserError
from repro.vocabulary import Paper, Preset

SMOKE_REASON = "A smoke run checks the plumbing on embedded data; it never gets a verdict."
PERCENT_MARGIN = 1.0
RELATIVE_MARGIN = 0.1
FALSE_DISCOVERIES = 0.05


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
    could be judged, in our data where `transfer` is set; None where no part could. `p` is the two-sided p value of
    `judged`: of all parts holding, or of one not holding after Bonferroni's correction; 1 where nothing may decide.
    """

    claim: Claim
    verdict: Verdict
    judged: Verdict | None
    transfer: bool
    parts: tuple[PartVerdict, ...]
    reason: str
    p: float = 1.0

    @property
    def judged_parts(self) -> list[PartVerdict]:
        """The parts behind `judged`."""
        return [part for part in self.parts if part.judged is not None]

    @property
    def deciding(self) -> PartVerdict | None:
        """The judged part that decided: of those with the verdict `judged`, the least favourable one."""
        return _deciding(self.parts, self.judged)

    def deciding_in(self, table_id: str) -> PartVerdict | None:
        """The deciding one of the judged parts that compare cells of this table alone."""
        own = [part for part in self.judged_parts if {cell.table for cell in part.requirement.cells} == {table_id}]
        return _deciding(own, _worst([part.judged for part in own if part.judged])) if own else None

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
        """Judge one claim by the records at hand: by the rows that stand for the printed cells, and, where the ledger
        knows another reading of their metric and the record holds it, under that too.

        Readings that disagree do not contradict: it is open which of them the paper printed.
        """
        found = self._claim(claim, {})
        others = [axes for table in claim.tables for axes in metric_readings(self.measured, table)]
        for axes in [axes for place, axes in enumerate(others) if axes not in others[:place]]:
            other = self._claim(claim, axes)
            if other.judged is None or found.judged is None or other.judged == found.judged:
                continue
            found = replace(found, reason=f"{found.reason} Under {_axes_text(axes)}: {other.judged.label}.")
            if found.judged == Verdict.contradicted:
                own = Verdict.inconclusive if found.verdict == Verdict.contradicted else found.verdict
                found = replace(found, verdict=own, judged=Verdict.inconclusive, p=1.0)
        return found

    def _claim(self, claim: Claim, axes: Mapping[str, SettingValue]) -> ClaimVerdict:
        requirements = [under(requirement, axes) for requirement in claim.requirements]
        found = [self._measured_part(claim, requirement) for requirement in requirements]
        if self.smoke:
            return ClaimVerdict(claim, Verdict.not_comparable, None, False, tuple(found), SMOKE_REASON)
        family = sum(part.region is not None for part in found)
        parts = tuple(_decided(part, family) for part in found)
        judged = [part.judged for part in parts if part.judged is not None]
        verdict, together = _worst([part.verdict for part in parts]), _worst(judged) if judged else None
        reason = claim_sentence(claim, parts, _deciding(parts, together), _this_network(parts))
        transfer = any(part.in_our_data is not None for part in parts)
        return ClaimVerdict(claim, verdict, together, transfer, parts, reason, _p_value(parts))

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
        paper = next(paper for paper in PAPERS if record.id.startswith(f"{paper}/"))
        trained = load_paper_claims(paper).about == "training"
        ours = doubts(self.measured, [address], trained) if cell.ours else None
        if ours is None or cell.published is None:
            return CellVerdict(cell, Verdict.not_run, "No row of the record stands for this cell.")
        differences = self.differences(address)
        if differences:
            return CellVerdict(cell, Verdict.not_comparable, cell_sentence(cell, differences, ours, 0.0))
        low, high = rounding_interval(cell.published.printed)
        margin = cell_margin(cell)
        region = Region(low - margin, high + margin)
        verdict, reason = decide(ours, region), cell_sentence(replace(cell, ours=ours), (), ours, margin)
        for axes in metric_readings(self.measured, record.id) if verdict != Verdict.supported else ():
            other = doubts(self.measured, [address.under(axes)], trained)
            if other is not None and decide(other, region) == Verdict.supported:
                return CellVerdict(cell, Verdict.supported, f"{reason} It matches under {_axes_text(axes)}.")
        return CellVerdict(cell, verdict, reason)

    def _measured_part(self, claim: Claim, requirement: Requirement) -> PartVerdict:
        """A part with its quantity, and the region it can be judged by; the verdict needs the other parts' number."""
        quantity = doubts(self.measured, requirement.cells, claim.about == "training")
        if quantity is None or self.smoke:
            missing = Verdict.not_run if quantity is None and not self.smoke else Verdict.not_comparable
            return PartVerdict(requirement, missing)
        differences = tuple(dict.fromkeys(d for cell in requirement.cells for d in self.differences(cell)))
        if not differences:
            return PartVerdict(requirement, Verdict.inconclusive, None, quantity, requirement.region)
        direction = direction_of(requirement)
        transfers = direction is not None and self._same_run(*direction.cells)
        region = direction.region if direction is not None and transfers else None
        return PartVerdict(requirement, Verdict.not_comparable, None, quantity, region, differences)

    def _same_run(self, first: CellAddress, second: CellAddress) -> bool:
        """Whether two cells that share data set (network) in the paper share it in our runs too."""
        wanted = zip(expected_source(first), expected_source(second), strict=True)
        found = zip(self._source(first), self._source(second), strict=True)
        return all(a != b or ours == other for (a, b), (ours, other) in zip(wanted, found, strict=True))

    def _source(self, address: CellAddress) -> tuple[set[str], set[str]]:
        rows = self.measured.rows(address)
        return {row.dataset for row in rows}, {row.network for row in rows}


def _axes_text(axes: Mapping[str, SettingValue]) -> str:
    return "the reading " + ", ".join(f"{name} = {value}" for name, value in axes.items())


def _decided(part: PartVerdict, family: int) -> PartVerdict:
    """The part with its verdict as one of `family`: of the paper's setting, or else of our data."""
    if part.region is None or part.quantity is None:
        return part
    verdict = decide(part.quantity, part.region, family)
    if part.differences:
        return replace(part, in_our_data=verdict, family=family)
    return replace(part, verdict=verdict, family=family)


def _this_network(parts: Sequence[PartVerdict]) -> Verdict | None:
    """What the judged parts say of the one network that was trained, where that is the only doubt; else None."""
    judged = [part for part in parts if part.region is not None and part.quantity is not None]
    if not any(part.quantity and ONE_TRAINING in part.quantity.doubt for part in judged):
        return None
    return _worst([_decided(_of_this_network(part), len(judged)).judged or Verdict.inconclusive for part in judged])


def _of_this_network(part: PartVerdict) -> PartVerdict:
    assert part.quantity is not None
    others = [doubt for doubt in part.quantity.doubt.split("; ") if doubt not in ("", ONE_TRAINING)]
    return replace(part, quantity=with_doubt(replace(part.quantity, doubt=""), "; ".join(others)))


def _p_value(parts: Sequence[PartVerdict]) -> float:
    judged = [part for part in parts if part.region is not None and part.quantity is not None]
    inside, outside = 0.0 if judged else 1.0, 1.0
    for part in judged:
        assert part.quantity is not None and part.region is not None
        if part.quantity.doubt or part.region.distance(part.quantity.value) < part.region.matters:
            inside = 1.0
            continue
        above_low, above_high = part.quantity.confidence(part.region.low), 0.0
        if part.region.high < float("inf"):
            above_high = part.quantity.confidence(part.region.high)
        inside = max(inside, 1 - above_low, above_high)
        outside = min(outside, above_low, 1 - above_high)
    return min(1.0, 2 * min(inside, len(judged) * outside))


def cell_margin(cell: CellComparison) -> float:
    """What a reproduction may miss a printed cell by: 1 point of a percentage, else a tenth of the printed value.

    Where the paper prints ±, that is taken if it is larger: a repetition of its own would miss by as much.
    """
    if cell.published is None:
        raise ValueError(f"{cell.method_label}, {cell.metric_label}: nothing is printed, so there is no margin")
    plain = PERCENT_MARGIN if cell.unit == "%" else max(RELATIVE_MARGIN * abs(cell.published.value), 1e-12)
    return max(plain, cell.published.spread or 0.0)


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


def _deciding(parts: Sequence[PartVerdict], judged: Verdict | None) -> PartVerdict | None:
    """Of the parts judged as `judged`, the least favourable to the claim: by its distance inside its region."""
    candidates = [part for part in parts if part.judged == judged and part.quantity is not None]
    return min(candidates, key=_favour) if judged is not None and candidates else None


def _favour(part: PartVerdict) -> float:
    assert part.quantity is not None and part.region is not None
    return min(part.quantity.value - part.region.low, part.region.high - part.quantity.value)


# The notes on multiple comparisons that stand under the tables of verdicts.


def comparison_note(verdicts: Sequence[ClaimVerdict], measured: Measurements) -> str:
    """How many of the distinct comparisons behind `verdicts` stand alone, by chance, and after Holm.

    Empty where nothing is compared.
    """
    cells = {frozenset(part.requirement.cells) for verdict in verdicts for part in verdict.judged_parts}
    found = [measured.difference(*sorted(both)) for both in cells if len(both) == 2]
    p_values = [difference.p_value() for difference in found if difference is not None]
    return multiple_comparison_note(p_values) if p_values else ""


def discovery_note(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many decided claims remain if only one in twenty of them may be false (Benjamini and Hochberg)."""
    judged = [verdict for verdict in verdicts if verdict.judged is not None]
    decided = [verdict.judged in (Verdict.supported, Verdict.contradicted) for verdict in judged]
    if not any(decided):
        return ""
    adjusted = false_discovery_control([verdict.p for verdict in judged])
    remain = sum(kept and p < FALSE_DISCOVERIES for kept, p in zip(decided, adjusted, strict=True))
    pairs = {
        frozenset(verdict.deciding.requirement.cells)
        for verdict, kept in zip(judged, decided, strict=True)
        if kept and verdict.deciding
    }
    return (
        f"Of {len(judged)} judged claims {sum(decided)} are decided, by {len(pairs)} distinct comparisons; at a false "
        f"discovery rate of {100 * FALSE_DISCOVERIES:g} % over all of them {remain} remain."
    )


# What we ourselves state in the README, machine-readable (`docs/stated.yaml`), held against the records.

Stated = dict[Preset, dict[str, Literal["supported", "contradicted", "inconclusive"]]]
_HEADER = """# What the README states about the claims, per preset: claim id → verdict over the judged comparisons.
# Written by `repro verdicts --state`; a test fails where this and the committed records differ in either direction.
"""


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
    known = {claim.id for paper in PAPERS for claim in load_claims(paper)}
    unknown = sorted({id for claims in stated.values() for id in claims} - known)
    if unknown:
        raise UserError(f"{path.name}: no claims of these ids: {', '.join(unknown)}")
    return stated


def found_verdicts(judge: Judge) -> dict[str, str]:
    """Claim id → verdict of every claim that could be judged, as `docs/stated.yaml` has it."""
    claims = [verdict for paper in PAPERS for verdict in judge.claims(paper)]
    return {verdict.claim.id: verdict.judged.value for verdict in claims if verdict.judged is not None}


def write_stated(path: Path, preset: Preset, judge: Judge) -> int:
    """Replace one preset's statements by today's verdicts; returns how many there are.

    Raises:
        UserError: the preset is smoke, which never gets a verdict.
    """
    if preset == "smoke":
        raise UserError("a smoke run gives no verdict, so there is nothing to state: use --preset quick or paper")
    stated = load_stated(path) if path.exists() else {}
    found = found_verdicts(judge)
    write_text(path, _HEADER + yaml.safe_dump({**stated, preset: found}, sort_keys=True))
    return len(found)
