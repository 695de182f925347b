"""The README's tables of results and claims, made from the records of one preset."""

from __future__ import annotations

from repro.catalogue import all_tables
from repro.evidence.comparison import headline
from repro.evidence.judgement import Judge
from repro.evidence.published import PAPERS
from repro.evidence.record import Record, records_in
from repro.project import reports_root
from repro.report.evidence_pages import PAPER_NAMES, claims_file
from repro.report.text import duration, markdown_table, plain, record_tag
from repro.report.verdict_views import counts
from repro.vocabulary import Preset

_RESULTS = (
    "table",
    "paper's own method",
    "paper",
    "ours [95 %]",
    "claims, in our data",
    "n",
    "device",
    "time: notebook; stored runs",
    "record: run · file",
)
_CLAIMS = ("paper", "claims", "in the paper's setting", "in our data, or over the measured part")


def measured_records(preset: Preset) -> dict[str, Record]:
    """The records of a preset that hold rows, by table id, in the catalogue's order."""
    found = records_in(reports_root() / preset)
    order = {table.id: place for place, table in enumerate(all_tables())}
    ids = sorted((id for id, record in found.items() if record.rows), key=lambda id: order.get(id, len(order)))
    return {id: found[id] for id in ids}


def results_table(preset: Preset, judge: Judge) -> str:
    """One row per table that has a record: the paper's number beside ours, and the record both can be traced to."""
    records = judge.measured.records
    if not records:
        return f"No record of the {preset} preset exists yet.\n"
    return markdown_table(_RESULTS, [_row(record, judge) for record in records.values()])


def claims_table(preset: Preset, judge: Judge) -> str:
    """One row per paper: how many of its claims are supported, contradicted, inconclusive, not run."""
    rows = []
    for paper in PAPERS:
        verdicts = judge.claims(paper)
        own = counts(verdict.verdict for verdict in verdicts)
        judged = counts(verdict.judged for verdict in verdicts if verdict.scope)
        words = [", ".join(f"{count} {verdict.word}" for verdict, count in found) or "–" for found in (own, judged)]
        rows.append([f"[{PAPER_NAMES[paper]}](reports/{preset}/{claims_file(paper)})", str(len(verdicts)), *words])
    return markdown_table(_CLAIMS, rows)


def _row(record: Record, judge: Judge) -> list[str]:
    cell = headline(record)
    judged = [verdict.judged for verdict in judge.claims_of_table(record.id) if verdict.scope]
    claims = ", ".join(f"{count} {verdict.word}" for verdict, count in counts(judged) if verdict) or "–"
    folder = f"reports/{record.preset}/{record.id}"
    quantity, paper, ours, units = "figure", "–", "–", "–"
    if cell is not None:
        unit = f", {cell.unit}" if cell.unit else ""
        quantity = plain(f"{cell.method_label}: {cell.metric_label}{unit}")
        paper, ours = cell.published_text, cell.ours_text
        units = cell.count_text
    facts = record.provenance
    stored = "not recorded" if facts.stored_seconds is None else duration(facts.stored_seconds)
    return [
        f"[{record.id}]({folder}/index.html)",
        quantity,
        paper,
        ours,
        claims,
        units,
        facts.device,
        f"{duration(facts.wall_seconds)}; {stored}",
        f"[{record_tag(record)}]({folder}/result.json)",
    ]
