"""Pages of one preset beside its dashboard: claims per paper, readings, differences; made from records only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.catalogue import PAPER_NAMES, PAPER_TITLES, PAPERS, Preset, Table, all_tables
from repro.evidence.claims import load_paper_claims
from repro.evidence.comparison import CellComparison
from repro.evidence.judgement import ClaimVerdict, Judge, comparison_note, discovery_note, table_title, tables_of
from repro.evidence.provenance import inputs_hash
from repro.evidence.published import load_published
from repro.evidence.readings import load_readings, option_name, options_run, reading_effects
from repro.evidence.record import (
    ATTEMPT_FOLDER,
    NOTEBOOK,
    PAGE,
    RECORD_FILE,
    Attempt,
    Record,
    load_attempt,
    read_records,
    records_in,
)
from repro.evidence.settings import compare_settings
from repro.files import write_changed, write_text
from repro.parameters import is_trial
from repro.project import reports_root
from repro.report.html import cell_name, duration, environment, notebook_body, stylesheet
from repro.report.verdict_views import (
    Counts,
    cell_plot,
    cell_rows,
    claim_plots,
    count_text,
    counts,
    effect_plots,
    effect_text,
    short_id,
    shown_cell,
    tally,
    tone,
)
from repro.vocabulary import Paper

DataSets = Sequence[Mapping[str, str]]
NOT_CURRENT = "No record of this table under this preset."


@dataclass(frozen=True)
class PaperSummary:
    """Counts of one paper's verdicts for the dashboard."""

    name: str
    href: str
    claims: int
    own: Counts
    """In the paper's own setting."""
    judged: Counts
    """In our data, or over the part that was measured."""


def render_all(preset: Preset, data_sets: Callable[[], DataSets]) -> dict[Path, str]:
    """Every page of a preset by its path, and for quick and paper `RESULTS.md` and `README.md`.

    `data_sets` gives the rows of `repro data list`.
    """
    judge = Judge({} if preset == "smoke" else records_in(reports_root() / preset))
    texts = {}
    for table in all_tables():
        folder = table.report(preset)
        attempt = load_attempt(folder)
        if (folder / NOTEBOOK).exists():
            texts[folder / PAGE] = page_text(folder, table, preset, judge)
        if (folder / ATTEMPT_FOLDER / NOTEBOOK).exists() and attempt is not None and attempt.state != "done":
            stage = folder / ATTEMPT_FOLDER
            texts[stage / PAGE] = page_text(stage, table, preset, judge, error=attempt.error)
    if preset != "smoke":
        from repro.report.readme import readme_texts

        texts |= readme_texts(data_sets())
    return texts | dashboard_texts(preset)


def write_dashboard(preset: Preset) -> Path:
    """Write `reports/<preset>/index.html` with the pages it links to, as far as they differ, and return its path."""
    write_changed(dashboard_texts(preset))
    return reports_root() / preset / PAGE


def claims_file(paper: Paper) -> str:
    """File name of a paper's claims page."""
    return f"claims-{paper}.html"


def page_links() -> list[tuple[str, str]]:
    """Navigation between the pages of one preset."""
    claims = [(f"Claims of {PAPER_NAMES[paper]}", claims_file(paper)) for paper in PAPERS]
    return [("All tables", "index.html"), *claims, ("Readings", "readings.html"), ("Differences", "differences.html")]


def _summary(paper: Paper, verdicts: Sequence[ClaimVerdict]) -> PaperSummary:
    return PaperSummary(PAPER_NAMES[paper], claims_file(paper), len(load_paper_claims(paper).claims), *tally(verdicts))


def _page(file: str, template: str, preset: Preset, title: str, context: Mapping[str, Any]) -> dict[Path, str]:
    page = environment().get_template(template)
    common = {"title": title, "css": stylesheet(), "preset": preset, "smoke": preset == "smoke", "pages": page_links()}
    return {reports_root() / preset / file: page.render({**common, **context, "this_page": file})}


def _claims_page(preset: Preset, paper: Paper, judge: Judge, verdicts: Sequence[ClaimVerdict]) -> dict[Path, str]:
    folder = reports_root() / preset
    contents, (own, judged) = load_paper_claims(paper), tally(verdicts)
    context = {
        "claims": contents.claims,
        "not_encoded": contents.not_encoded,
        "own": own,
        "judged": judged,
        "plots": claim_plots(verdicts),
        "discoveries": discovery_note(verdicts),
        "sections": [_section(folder, table, judge, verdicts) for table in tables_of(paper)] if verdicts else [],
        "short_id": short_id,
        "tone": tone,
    }
    title = f"Claims of {PAPER_NAMES[paper]}: {preset} preset"
    return _page(claims_file(paper), "claims.html.j2", preset, title, context)


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


def _readings_page(preset: Preset, judge: Judge) -> dict[Path, str]:
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
    return _page("readings.html", "readings.html.j2", preset, title, {"papers": papers, "total": len(readings)})


def _option(reading: Any, name: object, meaning: str) -> tuple[str, str, str]:
    """An option's name, meaning, and the roles it has."""
    roles = (("default", reading.default), ("the paper", reading.paper), ("released code", reading.released))
    marks = [role for role, chosen in roles if chosen is not None and option_name(chosen) == option_name(name)]
    return option_name(name), meaning, ", ".join(marks)


def _differences_page(preset: Preset, records: Mapping[str, Record]) -> dict[Path, str]:
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
    return _page("differences.html", "differences.html.j2", preset, title, {"papers": papers})


# A page per table: the answer, then the executed notebook.

_ANSWERS_SHOWN = 3


def write_page(folder: Path, table: Table, preset: Preset, trial: bool, error: str = "") -> None:
    """Write `page_text` as the page of `folder`, by the records that lie there now."""
    judge = Judge({} if trial or error or preset == "smoke" else records_in(reports_root() / preset))
    write_text(folder / PAGE, page_text(folder, table, preset, judge, trial, error))


def page_text(folder: Path, table: Table, preset: Preset, judge: Judge, trial: bool = False, error: str = "") -> str:
    """The executed notebook of a report folder, or of the `attempt` in it, as an HTML page that begins with the answer.

    Args:
        folder: where `notebook.ipynb` lies; where that is missing or unreadable the page says so.
        judge: of the preset's records; without one of this table the page has no answer.
        trial: whether its parameters are not exactly the preset's.
        error: text of the failure shown on top, escaped; empty for a run that succeeded.
    """
    within = folder.name == ATTEMPT_FOLDER
    home = "../" * (2 + within) + (f"../../{preset}/" if trial else "")
    links = [("All tables", home + PAGE), ("Executed notebook", NOTEBOOK)]
    links += [] if error else [("Record", RECORD_FILE)]
    links += [("The last good run", f"../{PAGE}")] if within and (folder.parent / PAGE).exists() else []
    body = notebook_body(folder / NOTEBOOK)
    if not (trial or error):
        body = body.replace("</h1>", "</h1>" + _answer(table, preset, judge, home), 1)
    context = {"title": table.title, "css": stylesheet(), "body": body, "error": error, "smoke": preset == "smoke"}
    return (
        environment().get_template("page.html.j2").render(context | {"trial": trial, "preset": preset, "links": links})
    )


def _answer(table: Table, preset: Preset, judge: Judge, home: str) -> str:
    """What the page is about in a few lines: verdicts with their effects, what was run instead of what, the command."""
    record = judge.measured.records.get(table.id)
    verdicts = judge.claims_of_table(table.id) if record else []
    judged = [verdict for verdict in verdicts if verdict.judged is not None]
    context = {
        "shown": judged[:_ANSWERS_SHOWN],
        "folded": judged[_ANSWERS_SHOWN:],
        "silent": len(verdicts) - len(judged),
        "effect": lambda verdict: effect_text(verdict.deciding),
        "count": lambda verdict: count_text(verdict.quantity, record) if record and verdict.quantity else "",
        "tone": tone,
        "ran": _ran(record) if record else "",
        "instead": [x for x in compare_settings(table.id, record)[:2] if x.state == "differs"] if record else [],
        "command": f"repro run {table.id}" + (f" --preset {preset}" if preset != "smoke" else ""),
        "claims": home + claims_file(table.paper) + (f"#{table.id.replace('/', '-')}" if judged else ""),
        "differences": f"{home}differences.html#{table.id.replace('/', '-')}",
    }
    return environment().get_template("answer.html.j2").render(context)


# One page per preset: a row per table, made from records only.


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
    verdicts: Counts
    """What the claims that rest on it come to, as far as this run can judge them."""
    page_exists: bool
    failed_page: str
    """Page of a failed attempt, relative to the dashboard; empty where the latest run succeeded."""


def status_of(table: Table, record: Record | None, attempt: Attempt | None, problem: str = "") -> Status:
    """Judge a table by its latest attempt, its record, and whether the record's inputs are still today's."""
    kept = "; the numbers are those of the last good run" if record else ""
    if attempt is not None and attempt.state == "running":
        return Status("…", "running", "open", f"since {attempt.started}{kept}")
    if attempt is not None and attempt.state in ("failed", "interrupted"):
        return Status("✗", attempt.state, "bad", attempt.error.split("\n")[0][:160] + kept)
    if problem:
        return Status("✗", "left out", "bad", problem)
    if record is None:
        return Status("–", "not run", "open")
    if is_trial(table, record.parameters):
        return Status("↻", "stale", "open", "the preset's parameters changed since this record")
    if record.provenance.inputs_hash != inputs_hash(table, record.parameters_hash):
        return Status("↻", "stale", "open", "notebook or code changed since this record")
    return Status("✓", "current", "good")


def dashboard_row(table: Table, preset: Preset, judge: Judge, problem: str = "") -> DashboardRow:
    """Collect one row; `problem` is why a record that lies there was left out."""
    folder, record = table.report(preset), judge.measured.records.get(table.id)
    verdicts = judge.claims_of_table(table.id) if record and preset != "smoke" else []
    return DashboardRow(
        table=table,
        title=table.title,
        status=status_of(table, record, load_attempt(folder), problem),
        record=record,
        headline=shown_cell(record, verdicts) if record else None,
        verdicts=counts(verdict.judged for verdict in verdicts if verdict.judged),
        page_exists=(folder / PAGE).exists(),
        failed_page=f"{table.id}/{ATTEMPT_FOLDER}/{PAGE}" if (folder / ATTEMPT_FOLDER / PAGE).exists() else "",
    )


def dashboard_texts(preset: Preset) -> dict[Path, str]:
    """The dashboard of a preset with the claims, readings and differences pages it links to, by path."""
    folder = reports_root() / preset
    records, problems = read_records(folder)
    judge = Judge(records)
    verdicts = {paper: [] if preset == "smoke" else judge.claims(paper) for paper in PAPERS}
    rows = [dashboard_row(t, preset, judge, problems.get(t.id, "")) for t in all_tables()]
    papers = [(f"{PAPER_NAMES[paper]} — {PAPER_TITLES[paper]}", [row for row in rows if row.table.paper == paper])
              for paper in PAPERS]  # fmt: skip
    context = {
        "papers": [(title, group) for title, group in papers if group],
        "summaries": [_summary(paper, verdicts[paper]) for paper in PAPERS],
        "pages": page_links()[1:],
        "tone": tone,
        "cell_name": cell_name,
        "duration": duration,
        "valid": sum(row.record is not None for row in rows),
        "total": len(rows),
    }
    texts = _page(PAGE, "dashboard.html.j2", preset, f"Reproduction report: {preset} preset", context)
    for paper in PAPERS:
        texts |= _claims_page(preset, paper, judge, verdicts[paper])
    return texts | _readings_page(preset, judge) | _differences_page(preset, records)
