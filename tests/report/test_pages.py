"""Committed and freshly made pages: no broken link, fetch or script, texts for pictures, one heading, no host path."""

import shutil

import nbformat
import pytest
from page_checks import faults_of_markdown, faults_of_page

from repro.batch.runner import rebuild_page
from repro.catalogue import all_tables
from repro.project import code_root
from repro.report.html import export_notebook, with_unique_headings
from repro.report.pages import write_dashboard

ROOT = code_root()
COMMITTED = sorted((ROOT / "reports" / "quick").rglob("*.html"))
MARKDOWN = [ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
ONE_TABLE = "scorecampp/table7_logit_drop"
GOOD = '<html lang="en"><head><title>t</title></head><body><h1 id="a">x</h1>{}</body></html>'


def test_there_are_committed_pages():
    assert len(COMMITTED) >= 8


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.relative_to(ROOT / "reports").as_posix())
def test_a_committed_page_is_whole(path):
    assert not faults_of_page(path.read_text(encoding="utf-8"), path)


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_links_of_markdown_lead_somewhere(path):
    assert not faults_of_markdown(path)


def test_pages_made_today_are_whole(tmp_path, monkeypatch):
    """One table's page, the dashboard and the evidence pages, by today's templates."""
    shutil.copytree(ROOT / "reports/quick" / ONE_TABLE, tmp_path / "quick" / ONE_TABLE)
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path))
    rebuild_page(next(table for table in all_tables() if table.id == ONE_TABLE), "quick")
    write_dashboard("quick")
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) == 7
    assert not {path.name: faults for path in pages if (faults := faults_of_page(path.read_text(), path))}


def test_a_notebook_with_everything_becomes_a_whole_page(tmp_path):
    output = nbformat.v4.new_output("stream", text="1 < 2\n")
    cells = [
        nbformat.v4.new_markdown_cell(
            "# Title\n\nEq. $a^2$ and [a link](result.json)\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        ),
        nbformat.v4.new_code_cell("print('1 < 2')", outputs=[output]),
    ]
    folder = tmp_path / "reports" / "smoke" / "ega" / "x"
    folder.mkdir(parents=True)
    (folder.parents[1] / "index.html").write_text("")
    (folder / "result.json").write_text("{}")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")
    export_notebook(folder / "notebook.ipynb", folder / "index.html", "x & y")
    assert not faults_of_page((folder / "index.html").read_text(), folder / "index.html")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<img src="data:image/png;base64,AA" alt=" ">', "1 img without text"),
        ('<img src="https://example.org/x.png" alt="x">', "fetches https://example.org"),
        ("<script>1</script>", "<script> is not allowed"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "<link> fetches //example.org"),
        ("<style>@import 'x.css';</style>", "a style fetches"),
        ('<p style="background: url(x.png)">x</p>', "a style fetches"),
        ("<h1>again</h1>", "2 h1 headings"),
        ("<table><tr><th>x</th></tr></table>", "1 table headers without scope"),
        ('<p id="a">x</p>', "id 'a' occurs 2 times"),
        ('<a href="missing.html">x</a>', "broken link missing.html"),
        ('<a href="#nowhere">x</a>', "missing anchor #nowhere"),
        ("<pre>File /home/someone/x.py</pre>", "a path of a machine: /home/s"),
        ('<p onclick="x()">x</p>', "has the script onclick"),
    ],
)
def test_each_fault_is_found(tmp_path, body, fault):
    assert not faults_of_page(GOOD.format('<a href="#a">x</a><a href="https://example.org">y</a>'), tmp_path / "x.html")
    assert any(fault in found for found in faults_of_page(GOOD.format(body), tmp_path / "x.html"))


def test_headings_of_one_name_get_ids_of_their_own() -> None:
    twice = '<h2 id="A">A<a href="#A">¶</a></h2><p>text</p>' * 2
    found = with_unique_headings(twice)
    assert found == '<h2 id="A">A<a href="#A">¶</a></h2><p>text</p><h2 id="A-2">A<a href="#A-2">¶</a></h2><p>text</p>'
