"""The README's speed table, made from the committed records of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from repro.evidence.speed import Comparison, SpeedRecord
from repro.report.text import markdown_table, plain

_COLUMNS = ("what", "ours", "peer", "ratio [range over rounds]", "demanded", "met", "threads", "hardware, date", "file")
NOTHING = "No benchmark has been run on an idle machine yet: `make bench` does it.\n"


def speed_table(records: Sequence[SpeedRecord]) -> str:
    """One row per comparison; a bar that is not met says so."""
    rows = [_row(record, comparison) for record in records for comparison in record.comparisons]
    return markdown_table(_COLUMNS, rows) if rows else NOTHING


def _row(record: SpeedRecord, found: Comparison) -> list[str]:
    facts = record.environment
    where = facts.processor if facts.device == "CPU" else facts.device
    peer = found.peer_label if found.peer is None else f"{found.peer_label}: {_number(found.peer)} {found.unit}"
    return [
        plain(found.name),
        f"{_number(found.ours)} {found.unit}",
        plain(peer),
        _ratio(found),
        _bar(found),
        {True: "yes", False: "**no**", None: "–"}[found.met],
        str(found.threads),
        f"{plain(where)}, {facts.date}{' (code with changes)' if facts.dirty else ''}",
        f"[{record.name}](benchmarks/results/{record.name}.json)",
    ]


def _ratio(found: Comparison) -> str:
    if found.peer is None:
        return "–"
    text = f"{found.ratio:.3g} ({found.ratio_is})"
    if found.ratio_low is None or found.ratio_high is None:
        return text
    return f"{found.ratio:.3g} [{found.ratio_low:.3g}, {found.ratio_high:.3g}] ({found.ratio_is})"


def _bar(found: Comparison) -> str:
    if found.bar is None:
        return "–"
    unit = f" {found.unit}" if found.peer is None else ""
    return f"{'≥' if found.ratio_is == 'peer / ours' else '≤'} {found.bar:g}{unit}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
