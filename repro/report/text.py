"""Small pieces of text that several reports share: Markdown tables, durations, the tag of a record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from repro.evidence.record import FILE_NAME, Record
from repro.files import file_hash
from repro.project import reports_root


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown such as links."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that cannot break out of a Markdown cell or turn into HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def duration(seconds: float) -> str:
    """`13 s`, `4.2 min` or `3.1 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def record_tag(record: Record) -> str:
    """What names a saved record beyond doubt: the first digits of its run's id and of its file's SHA-256."""
    path = reports_root() / record.preset / record.id / FILE_NAME
    return f"`{record.run_id[:8]}` · `{file_hash(path)[:12]}`"
