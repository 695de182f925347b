"""One page per preset: a row per table, made from records only."""

from __future__ import annotations

from pathlib import Path

from repro.catalogue import Preset, all_tables
from repro.evidence.record import record_of
from repro.files import write_text
from repro.project import reports_root
from repro.report.html import environment, stylesheet


def write_dashboard(preset: Preset) -> Path:
    """Write `reports/<preset>/index.html` and return its path."""
    target = reports_root() / preset / "index.html"
    rows = [(table, record_of(table, preset)) for table in all_tables()]
    page = environment().get_template("dashboard.html.j2")
    write_text(target, page.render(title=f"{preset} reports", css=stylesheet(), rows=rows, preset=preset))
    return target
