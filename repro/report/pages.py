"""Pages of one preset beside its dashboard: claims per paper, readings, differences; made from records only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.catalogue import PAPERS as PAPER_ORDER
from repro.catalogue import Preset, Table, all_tables
from repro.evidence.claims import load_paper_claims
from repro.evidence.comparison import CellComparison, headline
from repro.evidence.judgement import ClaimVerdict, Judge, comparison_note, discovery_note, table_title, tables_of
from repro.evidence.provenance import inputs_hash
from repro.evidence.published import PAPERS, Paper, load_published
from repro.evidence.readings import load_readings, option_name, options_run, reading_effects
from repro.evidence.record import Attempt, Record, load_attempt, record_of, records_in
from repro.evidence.settings import compare_settings
from repro.evidence.statistics import Verdict
from repro.files import write_text
from repro.project import reports_root
from repro.report.html import duration, environment, stylesheet
from repro.report.verdict_views import (
    cell_plot,
    cell_rows,
    claim_plots,
    counts,
    effect_plots,
    short_id,
    tone,
)

PAPER_NAMES: dict[Paper, str] = {"ega": "EGA", "dfg": "DFG", "scorecampp": "ScoreCAM++"}
NOT_CURRENT = "No record of this table under this preset."


@dataclass(frozen=True)
class PaperSummary:
    """Counts of one paper's verdicts for the dashboard."""

    name: str
    href: str
    claims: int
    own: list[tuple[Verdict, int]]
    """In the paper's own setting."""
    judged: list[tuple[Verdict, int]]
    """In our data, or over the part that was measured."""


def write_evidence_pages(preset: Preset) -> list[PaperSummary]:
    """Write the claims, readings and differences pages of a preset; returns the counts the dashboard shows."""
    folder = reports_root() / preset
    records = records_in(folder)
    judge = Judge(records)
    summaries = []
    for paper in PAPERS:
        verdicts = [] if preset == "smoke" else judge.claims(paper)
        _write_claims(folder, preset, paper, judge, verdicts)
        summaries.append(_summary(paper, verdicts))
    _write_readings(folder, preset, judge)
    _write_differences(folder, preset, records)
    return summaries


def claims_file(paper: Paper) -> str:
    """File name of a paper's claims page."""
    return f"claims-{paper}.html"


def page_links() -> list[tuple[str, str]]:
    """Navigation between the pages of one preset."""
    claims = [(f"Claims of {PAPER_NAMES[paper]}", claims_file(paper)) for paper in PAPERS]
    return [("All tables", "index.html"), *claims, ("Readings", "readings.html"), ("Differences", "differences.html")]


def _summary(paper: Paper, verdicts: Sequence[ClaimVerdict]) -> PaperSummary:
    return PaperSummary(
        name=PAPER_NAMES[paper],
        href=claims_file(paper),
        claims=len(load_paper_claims(paper).claims),
        own=counts(verdict.verdict for verdict in verdicts),
        judged=counts(verdict.judged for verdict in verdicts if verdict.scope),
    )


def _write(folder: Path, file: str, template: str, preset: Preset, title: str, context: Mapping[str, Any]) -> None:
    page = environment().get_template(template)
    common = {"title": title, "css": stylesheet(), "preset": preset, "smoke": preset == "smoke", "pages": page_links()}
    write_text(folder / file, page.render({**common, **context, "this_page": file}))


def _write_claims(folder: Path, preset: Preset, paper: Paper, judge: Judge, verdicts: Sequence[ClaimVerdict]) -> None:
    contents = load_paper_claims(paper)
    context = {
        "claims": contents.claims,
        "not_encoded": contents.not_encoded,
        "own": counts(verdict.verdict for verdict in verdicts),
        "judged": counts(verdict.judged for verdict in verdicts if verdict.scope),
        "plots": claim_plots(verdicts),
        "discoveries": discovery_note(verdicts),
        "sections": [_section(folder, table, judge, verdicts) for table in tables_of(paper)] if verdicts else [],
        "short_id": short_id,
        "tone": tone,
    }
    title = f"Claims of {PAPER_NAMES[paper]}: {preset} preset"
    _write(folder, claims_file(paper), "claims.html.j2", preset, title, context)


def _section(folder: Path, table: str, judge: Judge, verdicts: Sequence[ClaimVerdict]) -> dict[str, Any]:
    own = [verdict for verdict in verdicts if verdict.claim.tables[0] == table]
    record = judge.measured.records.get(table)
    cells = judge.cells(table)
    return {
        "id": table,
        "title": table_title(table),
        "report": f"{table}/index.html" if (folder / table / "index.html").exists() else "",
        "verdicts": own,
        "ran": _ran(record) if record else NOT_CURRENT,
        "note": comparison_note(own, judge.measured),
        "findings": record.findings if record else [],
        "cells": cell_rows(cells) if record else [],
        "scatter": cell_plot(cells, f"{table}: ours over the paper's; on the dashed line they are equal"),
    }


def _ran(record: Record) -> str:
    def names(found: set[str]) -> str:
        return ", ".join(sorted(found - {""})) or "not recorded"

    seeds = len({row.seed for row in record.rows})
    images = max((row.n for row in record.rows if row.n is not None), default=None)
    size = f"{seeds} seed{'s' * (seeds != 1)}" + (f", {images} images" if images else "")
    return (
        f"Ours: {names({row.dataset for row in record.rows})}, {names({row.network for row in record.rows})}, {size}."
    )


def _write_readings(folder: Path, preset: Preset, judge: Judge) -> None:
    effects = reading_effects(judge.measured)
    readings: list[dict[str, Any]] = [
        {
            "entry": reading,
            "options": [_option(reading, name, meaning) for name, meaning in reading.options.items()],
            "ran": options_run(reading, judge.measured.records),
            "plots": effect_plots([effect for effect in effects if effect.reading.id == reading.id]),
        }
        for reading in load_readings()
    ]
    papers = [(PAPER_NAMES[paper], [r for r in readings if r["entry"].id.startswith(f"{paper}.")]) for paper in PAPERS]
    title = f"Readings: what the papers leave open, {preset} preset"
    _write(folder, "readings.html", "readings.html.j2", preset, title, {"papers": papers, "total": len(readings)})


def _option(reading: Any, name: object, meaning: str) -> tuple[str, str, str]:
    """An option's name, meaning, and the roles it has."""
    roles = (("default", reading.default), ("the paper", reading.paper), ("released code", reading.released))
    marks = [role for role, chosen in roles if chosen is not None and option_name(chosen) == option_name(name)]
    return option_name(name), meaning, ", ".join(marks)


def _write_differences(folder: Path, preset: Preset, records: Mapping[str, Record]) -> None:
    papers = []
    for paper in PAPERS:
        tables = [
            {
                "id": table.id,
                "title": f"{table.source}: {table.title}",
                "lines": compare_settings(table.id, records.get(table.id)),
                "deviations": records[table.id].deviations if table.id in records else [],
                "run": table.id in records,
            }
            for table in load_published(paper)
        ]
        papers.append((PAPER_NAMES[paper], tables))
    title = f"Differences between paper and run: {preset} preset"
    _write(folder, "differences.html", "differences.html.j2", preset, title, {"papers": papers})


# One page per preset: a row per table, made from records only.

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
    papers = [(PAPER_TITLES[paper], [row for row in rows if row.table.paper == paper]) for paper in PAPER_ORDER]
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
