"""The README's speed tables, made from the committed records of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

from repro.evidence.speed import Comparison, SpeedRecord
from repro.report.text import markdown_table, plain

_COLUMNS = ("what", "ours", "peer", "ratio [range over rounds]", "demanded", "met", "threads")
NOTHING = "No benchmark has been run on an idle machine yet: `make bench` does it.\n"


def speed_table(records: Sequence[SpeedRecord]) -> str:
    """How many demands are met, then one table per benchmark under a line that names its hardware and file.

    Every comparison is a row; a demand that is not met says so.
    """
    demands = [found.met for record in records for found in record.comparisons if found.met is not None]
    if not records:
        return NOTHING
    head = f"{sum(demands)} of {len(demands)} demands are met.\n"
    return "\n".join([head, *(_section(record) for record in records)])


def _section(record: SpeedRecord) -> str:
    facts = record.environment
    where = facts.processor if facts.device == "CPU" else f"{facts.device}, host {facts.processor}"
    versions = ", ".join(f"{name} {version}" for name, version in facts.libraries.items())
    commit = f", commit {facts.commit[:10]}{' with changes' if facts.dirty else ''}" if facts.commit else ""
    source = f"[{record.name}](benchmarks/results/{record.name}.json)"
    line = f"{source} — {plain(where)}; {plain(versions)}; {facts.date}{commit}\n"
    return "\n".join([line, markdown_table(_COLUMNS, [_row(found) for found in record.comparisons])])


def _row(found: Comparison) -> list[str]:
    peer = found.peer_label if found.peer is None else f"{found.peer_label}: {_number(found.peer)} {found.unit}"
    return [
        plain(found.name),
        f"{_number(found.ours)} {found.unit}",
        plain(peer),
        _ratio(found),
        _bar(found),
        {True: "yes", False: "**no**", None: "–"}[found.met],
        str(found.threads),
    ]


def _ratio(found: Comparison) -> str:
    if found.peer is None:
        return "–"
    spread = "" if found.ratio_low is None else f" [{found.ratio_low:.3g}, {found.ratio_high:.3g}]"
    return f"{found.ratio:.3g}{spread} ({found.ratio_is})"


def _bar(found: Comparison) -> str:
    if found.bar is None:
        return "–"
    unit = f" {found.unit}" if found.peer is None else ""
    return f"{'≥' if found.ratio_is == 'peer / ours' else '≤'} {found.bar:g}{unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
