"""Small accessible HTML tables: caption, header scopes, escaped text, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from repro.evidence.comparison import CellComparison

# JupyterLab's own style aligns every cell to the right, and a cell's own is the only one it respects.
_LEFT = 'style="text-align:left"'


def key_value_table(caption: str, facts: Mapping[str, Any]) -> str:
    """A two-column table with row headers."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td {_LEFT}>{escape(str(value))}</td></tr>'
        for key, value in facts.items()
    )
    return f'<table class="facts"><caption>{escape(caption)}</caption><tbody>{rows}</tbody></table>'


def bullet_list(sentences: Sequence[str]) -> str:
    """An unordered list, one item a sentence."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def data_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column holds the row headers; every cell is escaped."""
    head = "".join(f'<th scope="col" {_LEFT}>{escape(str(column))}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + f'<th scope="row" {_LEFT}>{escape(str(row[0]))}</th>'
        + "".join(f"<td {_LEFT}>{escape(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="data"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def comparison_table(caption: str, cells: Sequence[CellComparison]) -> str:
    """Paper and ours side by side: a row per method and setting, two columns per metric."""
    metrics = {cell.metric: cell for cell in cells}
    rows: dict[tuple[str, str], dict[str, CellComparison]] = {}
    for cell in cells:
        axes = ", ".join(f"{name} = {value}" for name, value in cell.setting.items())
        rows.setdefault((cell.method_label, axes), {})[cell.metric] = cell
    columns = ["method"] + (["setting"] if any(axes for _, axes in rows) else [])
    printed = {cell.metric for cell in cells if cell.published}
    for metric, cell in metrics.items():
        unit = f", {cell.unit}" if cell.unit and cell.unit not in cell.metric_label else ""
        label = f"{cell.metric_label}{unit}" + {"lower": " ↓", "higher": " ↑"}.get(cell.better, "")
        columns += [f"{label}: paper", "ours [95 %]"] if metric in printed else [f"{label}: ours [95 %]"]
    body = []
    for (method, axes), found in rows.items():
        line = [method] + ([axes] if "setting" in columns else [])
        for metric in metrics:
            cell_found = found.get(metric)
            if metric in printed:
                line.append(cell_found.published_text if cell_found else "")
            line.append(cell_found.ours_text if cell_found else "")
        body.append(line)
    return data_table(caption, columns, body)
