"""One page per preset: a row per table, made from records only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repro.catalogue import PAPERS, Preset, Table, all_tables
from repro.evidence.attempt import Attempt, load_attempt
from repro.evidence.comparison import CellComparison, headline
from repro.evidence.provenance import inputs_hash
from repro.evidence.record import Record, record_of
from repro.files import write_text
from repro.project import reports_root
from repro.report.evidence_pages import page_links, write_evidence_pages
from repro.report.html import environment, stylesheet
from repro.report.text import duration
from repro.report.verdict_views import tone

PAPER_TITLES = {
    "scorecampp": "ScoreCAM++ — Reliable or Deceptive? Investigating Gated Features for Smooth Visual Explanations",
    "ega": "EGA — Entropy Guided Adversarial Model for Weakly Supervised Object Localization",
    "dfg": "DFG — Discriminative feature generation for classification of imbalanced data",
}


@dataclass(frozen=True)
class Status:
    """State of a table in words, a symbol beside it, and a tone that only repeats both as colour."""

    symbol: str
    word: str
    tone: str
    detail: str = ""


@dataclass(frozen=True)
class DashboardRow:
    """What the dashboard shows of one table."""

    table: Table
    title: str
    status: Status
    record: Record | None
    headline: CellComparison | None
    page_exists: bool


def status_of(table: Table, record: Record | None, attempt: Attempt | None) -> Status:
    """Judge a table by its latest attempt, its record, and whether the record's inputs are still today's."""
    if attempt is not None and attempt.state == "running":
        return Status("…", "running", "open", f"since {attempt.started}")
    if attempt is not None and attempt.state in ("failed", "interrupted"):
        kept = "; numbers are of an earlier run" if record else ""
        return Status("✗", attempt.state, "bad", attempt.error.split("\n")[0][:160] + kept)
    if record is None:
        return Status("–", "not run", "open")
    if record.provenance.inputs_hash != inputs_hash(table, record.parameters_hash):
        return Status("↻", "stale", "open", "notebook or code changed since this record")
    return Status("✓", "current", "good")


def dashboard_row(table: Table, preset: Preset) -> DashboardRow:
    """Collect one row."""
    folder = table.report(preset)
    record, attempt = record_of(table, preset), load_attempt(folder)
    first = headline(record) if record else None
    return DashboardRow(
        table, table.title, status_of(table, record, attempt), record, first, (folder / "index.html").exists()
    )


def write_dashboard(preset: Preset) -> Path:
    """Write `reports/<preset>/index.html` with the pages it links to, and return its path."""
    target = reports_root() / preset / "index.html"
    summaries = write_evidence_pages(preset)
    rows = [dashboard_row(table, preset) for table in all_tables()]
    papers = [(PAPER_TITLES[paper], [row for row in rows if row.table.paper == paper]) for paper in PAPERS]
    page = environment().get_template("dashboard.html.j2")
    context = {
        "title": f"Reproduction report: {preset} preset",
        "css": stylesheet(),
        "papers": [(title, group) for title, group in papers if group],
        "preset": preset,
        "smoke": preset == "smoke",
        "summaries": summaries,
        "pages": page_links()[1:],
        "tone": tone,
        "duration": duration,
        "valid": sum(row.record is not None for row in rows),
        "total": len(rows),
    }
    write_text(target, page.render(context))
    return target
