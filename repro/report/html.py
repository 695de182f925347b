"""Executed notebooks as single HTML files: no script, no external fetch, MathML, alternative texts kept."""

from __future__ import annotations

import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader, pass_context, select_autoescape
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from repro.files import write_text

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


def export_notebook(executed: Path, target: Path, title: str, error: str = "") -> None:
    """Write `executed` (an .ipynb) as one HTML page.

    Args:
        executed: executed notebook; where it is missing or unreadable the page says so and shows `error`.
        target: HTML file, written atomically.
        title: page title, escaped.
        error: text of the failure shown on top, escaped; empty for a run that succeeded.
    """
    body = "<p>The executed notebook is missing.</p>"
    if executed.exists():
        try:
            body, _ = OfflineExporter().from_notebook_node(nbformat.read(executed, as_version=4))
            body = with_unique_headings(body)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError) as problem:
            body = f"<p>The executed notebook cannot be read: {escape(str(problem))}</p>"
    page = environment().get_template("page.html.j2")
    smoke = "smoke" in target.parts
    links = [("Executed notebook", "notebook.ipynb"), ("Record", "result.json")]
    html = page.render(title=title, css=stylesheet(), body=body, error=error, smoke=smoke, links=links)
    write_text(target, html)
