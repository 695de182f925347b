"""What `repro run` does around the runner: progress for people, the dashboard, and the exit status.

What makes pages is imported where it is used: its libraries take seconds, and with nothing to do none is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from repro.batch.job import Job
from repro.batch.runner import Outcome, Runner
from repro.catalogue import Preset, Table, all_tables
from repro.errors import UserError
from repro.evidence.attempt import load_attempt
from repro.files import atomic_path
from repro.project import reports_root

INTERRUPTED = 130
DASHBOARD = "index.html"


def run_and_report(jobs: Sequence[Job], preset: Preset, jobs_at_once: int, console: Console) -> int:
    """Run `jobs`, rebuild the dashboard, and return the exit status: 0 all good, 1 failures, 130 interrupted.

    Raises:
        UserError: the reports folder cannot be written.
    """
    _check_writable(reports_root() / preset)
    if _nothing_to_do(jobs, preset):
        page = reports_root() / preset / DASHBOARD
        console.print(f"nothing to do: all {len(jobs)} records are current (use --force to run again)")
        console.print(f"{len(jobs)} of {len(jobs)} records valid; dashboard: {page}", markup=False)
        return 0
    from repro.report.dashboard import write_dashboard

    total, counter = len(jobs), 0

    def started(job: Job) -> None:
        console.print(f"        {job.table.id} …", markup=False)

    def finished(outcome: Outcome) -> None:
        nonlocal counter
        counter += 1
        line = f"[{counter:2}/{total}] {outcome.job.table.id}: {outcome.state}"
        line += "" if outcome.state in ("unchanged", "interrupted") else f" in {outcome.seconds:.1f} s"
        console.print(line + (f"\n        {outcome.error}" if outcome.error else ""), markup=False)

    outcomes = Runner(jobs_at_once, started, finished).run(jobs)
    dashboard = write_dashboard(preset)
    return _summarise(outcomes, dashboard, console)


def _summarise(outcomes: Sequence[Outcome], dashboard: Path, console: Console) -> int:
    bad = [outcome for outcome in outcomes if not outcome.good]
    for outcome in bad:
        folder = outcome.job.table.report(outcome.job.preset)
        console.print(f"{outcome.state}: {outcome.job.table.id}: see {folder / 'index.html'}", markup=False)
    console.print(f"{len(outcomes) - len(bad)} of {len(outcomes)} records valid; dashboard: {dashboard}", markup=False)
    if any(outcome.state == "interrupted" for outcome in bad):
        return INTERRUPTED
    return 1 if bad else 0


def _nothing_to_do(jobs: Sequence[Job], preset: Preset) -> bool:
    """Whether every record is current and the dashboard is not older than any of the preset."""
    folder = reports_root() / preset
    if not jobs or not (folder / DASHBOARD).exists() or any(job.force or not job.is_current() for job in jobs):
        return False
    written = (folder / DASHBOARD).stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written for path in folder.glob("*/*/*.json"))


def _check_writable(folder: Path) -> None:
    """Refuse before any notebook starts rather than fail after hours.

    Raises:
        UserError: nothing can be written below `folder`.
    """
    try:
        with atomic_path(folder / "write-test") as temporary:
            temporary.write_text("a report must fit here")
        (folder / "write-test").unlink()
    except OSError as error:
        raise UserError(
            f"reports cannot be written to {folder}: {error.strerror}; free space, change its permissions or set "
            "REPRO_REPORTS to another folder"
        ) from error


def rebuild_report(preset: Preset) -> Path:
    """Export every executed notebook again, dashboard, `RESULTS.md`, README. Returns the dashboard's path."""
    from repro.report.dashboard import write_dashboard
    from repro.report.readme import update_readme
    from repro.report.results import write_results

    for table in all_tables():
        rebuild_page(table, preset)
    if preset != "smoke":
        write_results()
        update_readme(preset)
    return write_dashboard(preset)


def rebuild_page(table: Table, preset: Preset) -> None:
    """Export one executed notebook again, with its error where it failed; nothing where there is none."""
    from repro.report.html import export_notebook

    folder = table.report(preset)
    if (folder / "notebook.ipynb").exists():
        attempt = load_attempt(folder)
        error = attempt.error if attempt and attempt.state != "done" else ""
        export_notebook(folder / "notebook.ipynb", folder / "index.html", table.title, error)
