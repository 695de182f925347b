"""Executed notebooks as single HTML files: no script, no external fetch, MathML, alternative texts kept."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import nh3
from jinja2 import Environment, FileSystemLoader, pass_context, select_autoescape
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from repro.evidence.comparison import CellComparison
from repro.evidence.record import RECORD_FILE, Record
from repro.files import file_hash
from repro.project import reports_root

# Small pieces of text that several reports share: Markdown tables, durations, the tag of a record.


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown such as links."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell_name(cell: CellComparison) -> str:
    """Method and setting of a cell, e.g. "ScoreCAM++ (gate = tanh)"."""
    return f"{cell.method_label} ({_axes(cell)})" if cell.setting else cell.method_label


def _axes(cell: CellComparison) -> str:
    return ", ".join(f"{name} = {value}" for name, value in cell.axes.items())


def plain(text: str) -> str:
    """Text that cannot break out of a Markdown cell or turn into HTML."""
    for character, harmless in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " "), ("](", "]\\(")):
        text = text.replace(character, harmless)
    return text


def duration(seconds: float) -> str:
    """`13 s`, `4.2 min` or `3.1 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def record_tag(record: Record) -> str:
    """What names a saved record beyond doubt: the first digits of its run's id and of its file's SHA-256."""
    path = reports_root() / record.preset / record.id / RECORD_FILE
    return f"`{record.run_id[:8]}` · `{file_hash(path)[:12]}`"


TEMPLATES = Path(__file__).parent / "templates"


def to_mathml(tex: str, display: str) -> str:
    """TeX as MathML; a formula the converter cannot read stays readable as TeX in a `code` element."""
    # latex2mathml raises many unrelated types on malformed input, none of them documented.
    try:
        return convert(tex, display=display)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RuntimeError):
        return f"<code>{escape(tex)}</code>"


class _MathMLRenderer(IPythonRenderer):
    """Markdown to HTML with formulas as MathML instead of text for a script to find, and headers with a scope."""

    def block_math(self, body: str) -> str:
        return to_mathml(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return to_mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def inline_math(self, body: str) -> str:
        return to_mathml(body, "inline")

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        """A cell of a Markdown table; its headers say that they head a column."""
        opening, closing = ('<th scope="col"', "th") if head else ("<td", "td")
        style = f' style="text-align:{align}"' if align else ""
        return f"  {opening}{style}>{text}</{closing}>\n"


class OfflineExporter(HTMLExporter):
    """Body of a notebook as an HTML fragment with our own, script-free template."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(template_name="offline", extra_template_basedirs=[str(TEMPLATES)], **keywords)

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Markdown of a cell as HTML."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _MathMLRenderer(escape=False, attachments=attachments)
        return MarkdownWithMath(renderer=renderer).render(source)


@cache
def environment() -> Environment:
    """Jinja environment of all pages; everything is escaped unless marked safe."""
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(default=True))


@cache
def stylesheet() -> str:
    """The style of every page, with the colours of highlighted code."""
    code = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return (TEMPLATES / "style.css").read_text(encoding="utf-8") + code


def with_unique_headings(body: str) -> str:
    """Number the ids of headings that occur more than once, with the links that follow each of them."""
    seen: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        level, name, rest = match.groups()
        seen[name] = seen.get(name, 0) + 1
        if seen[name] == 1:
            return match[0]
        own = f"{name}-{seen[name]}"
        return f'<{level} id="{own}"{rest}'.replace(f'href="#{name}"', f'href="#{own}"')

    return re.sub(r'<(h\d) id="([^"]+)"(.*?</h\d>)', numbered, body, flags=re.DOTALL)


# What notebooks hold is filtered through a list of what may pass: no script, no event, no address but the web's.

_MATHML = {
    "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "mstyle", "merror", "mpadded",
    "mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mtable", "mtr", "mtd",
    "menclose", "mfenced",
}  # fmt: skip
_MATHML_ATTRIBUTES = {
    "display", "xmlns", "stretchy", "fence", "form", "separator", "lspace", "rspace", "width", "height", "depth",
    "linethickness", "mathvariant", "displaystyle", "scriptlevel", "accent", "accentunder", "columnalign", "rowspacing",
    "columnspacing", "minsize", "maxsize", "movablelimits", "largeop", "notation", "open", "close", "separators",
}  # fmt: skip
_TAGS = nh3.ALLOWED_TAGS | _MATHML | {"section", "figure", "figcaption"}
_EVERYWHERE = {"class", "id", "title", "lang", "role", "aria-label", "aria-hidden", "tabindex", "style"}
_STYLES = {"text-align", "background-color", "color", "font-weight", "white-space", "vertical-align", "width"}


def notebook_body(executed: Path) -> str:
    """The body of an executed notebook as filtered HTML; a sentence where it is missing or cannot be read."""
    if not executed.exists():
        return "<p>The executed notebook is missing.</p>"
    try:
        body, _ = OfflineExporter().from_notebook_node(nbformat.read(executed, as_version=4))
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as problem:
        return f"<p>The executed notebook cannot be read: {escape(str(problem))}</p>"
    return with_unique_headings(sanitised(body))


def sanitised(body: str) -> str:
    """HTML without anything that is not on the list of what may pass; images come with the page or not at all."""
    attributes = {tag: set(found) for tag, found in nh3.ALLOWED_ATTRIBUTES.items()}
    attributes["*"] = _EVERYWHERE
    attributes["th"] = attributes.get("th", set()) | {"scope"}
    attributes |= {tag: attributes.get(tag, set()) | _MATHML_ATTRIBUTES for tag in _MATHML}

    def local_images(tag: str, name: str, value: str) -> str | None:
        if tag == "img" and name == "src":
            return value if re.match(r"data:image/(png|jpeg|gif|webp);base64,", value) else None
        return None if value.lower().startswith("data:") and name in ("href", "src", "cite") else value

    return nh3.clean(
        body,
        tags=_TAGS,
        attributes=attributes,
        attribute_filter=local_images,
        url_schemes={"http", "https", "mailto", "data"},
        filter_style_properties=_STYLES,
        link_rel=None,
    )


# Small accessible HTML tables: caption, header scopes, escaped text, no script.

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


class Best(str):
    """Text of a cell that is the best of its column."""


def data_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose first column holds the row headers; every cell is escaped, the best of a column is bold."""
    head = "".join(f'<th scope="col" {_LEFT}>{escape(str(column))}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + f'<th scope="row" {_LEFT}>{escape(str(row[0]))}</th>'
        + "".join(f"<td {_LEFT}>{_cell(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="data"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(content: Any) -> str:
    text = escape(str(content))
    return f"<strong>{text}</strong>" if isinstance(content, Best) else text


def _best(cells: Sequence[CellComparison]) -> dict[str, float]:
    """Our best value of each metric that has a better side and more than one value."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.ours is not None and cell.better in ("lower", "higher"):
            found.setdefault(cell.metric, []).append(cell.ours.value)
    side = {cell.metric: min if cell.better == "lower" else max for cell in cells}
    return {metric: side[metric](values) for metric, values in found.items() if len(values) > 1}


def comparison_table(caption: str, cells: Sequence[CellComparison]) -> str:
    """Paper and ours side by side: a row per method and setting, two columns per metric; our best value is bold."""
    metrics = {cell.metric: cell for cell in cells}
    rows: dict[tuple[str, str], dict[str, CellComparison]] = {}
    for cell in cells:
        rows.setdefault((cell.method_label, str(cell.setting)), {})[cell.metric] = cell
    columns = ["method"] + (["setting"] if any(cell.setting for cell in cells) else [])
    printed = {cell.metric for cell in cells if cell.published}
    for metric, cell in metrics.items():
        unit = f", {cell.unit}" if cell.unit and cell.unit not in cell.metric_label else ""
        label = f"{cell.metric_label}{unit}" + {"lower": " ↓", "higher": " ↑"}.get(cell.better, "")
        columns += [f"{label}: paper", "ours [95 %]"] if metric in printed else [f"{label}: ours [95 %]"]
    body, best = [], _best(cells)
    for (method, _), found in rows.items():
        shown = next((cell for cell in found.values() if cell.ran), next(iter(found.values())))
        line = [method] + ([_axes(shown)] if "setting" in columns else [])
        for metric in metrics:
            cell_found = found.get(metric)
            if metric in printed:
                line.append(cell_found.published_text if cell_found else "")
            ours = cell_found.ours if cell_found else None
            text = cell_found.ours_text if cell_found else ""
            line.append(Best(text) if ours and ours.value == best.get(metric) else text)
        body.append(line)
    return data_table(caption, columns, body)
