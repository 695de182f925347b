"""Committed and freshly made pages: no broken link, fetch or script, texts for pictures, one heading, no host path."""

import re
import shutil

import nbformat
import pytest
from page_checks import Page, faults_of_markdown, faults_of_page

from repro.batch.runner import rebuild_report
from repro.catalogue import Table
from repro.evidence.comparison import CellComparison
from repro.evidence.judgement import Judge
from repro.evidence.record import records_in
from repro.evidence.statistics import Estimate
from repro.files import write_changed
from repro.project import code_root
from repro.report.html import cell_name, comparison_table, plain, with_unique_headings
from repro.report.pages import page_text, write_dashboard, write_page

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
    write_page(tmp_path / "quick" / ONE_TABLE, Table(ONE_TABLE), "quick", trial=False)
    write_dashboard("quick")
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) == 7
    assert not {path.name: faults for path in pages if (faults := faults_of_page(path.read_text(), path))}


def test_a_notebook_with_everything_becomes_a_whole_page(tmp_path, monkeypatch):
    output = nbformat.v4.new_output("stream", text="1 < 2\n")
    cells = [
        nbformat.v4.new_markdown_cell(
            "# Title\n\nEq. $a^2$ and [a link](result.json)\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        ),
        nbformat.v4.new_code_cell("print('1 < 2')", outputs=[output]),
    ]
    folder = tmp_path / "reports" / "smoke" / "ega" / "x"
    folder.mkdir(parents=True)
    for page in ("index.html", "claims-ega.html", "differences.html"):
        (folder.parents[1] / page).write_text('<h2 id="ega-x"></h2>')
    (folder / "result.json").write_text("{}")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")
    monkeypatch.setattr(Table, "title", "x & y")
    write_page(folder, Table("ega/x"), "smoke", trial=False)
    assert not faults_of_page((folder / "index.html").read_text(), folder / "index.html")


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    '<a href="data:text/html,<script>alert(1)</script>">x</a>',
    '<svg onload="alert(1)"><script>alert(1)</script></svg>',
    '<iframe src="https://example.org"></iframe><object data="x"></object><embed src="x"><form action="x"></form>',
    '<img src="https://example.org/pixel.png" alt="x"><link rel="stylesheet" href="https://example.org/x.css">',
    '<p style="background:url(https://example.org/x)">x</p><style>@import "https://example.org/x";</style>',
    '<math><mi xlink:href="javascript:alert(1)">x</mi></math><base href="https://example.org">',
    '<meta http-equiv="refresh" content="0;url=https://example.org">',
]


@pytest.mark.parametrize("evil", HOSTILE)
@pytest.mark.parametrize("where", ["markdown", "output"])
def test_pages_pass_on_only_what_is_listed(tmp_path, monkeypatch, evil, where):
    output = nbformat.v4.new_output("display_data", data={"text/html": evil})
    cell = {
        "markdown": nbformat.v4.new_markdown_cell(f"# x\n\n{evil}"),
        "output": nbformat.v4.new_code_cell("1", outputs=[output]),
    }[where]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    monkeypatch.setattr(Table, "title", "x")
    write_page(tmp_path, Table("ega/x"), "smoke", trial=False)
    page = Page((tmp_path / "index.html").read_text())
    assert not page.named("script", "iframe", "object", "embed", "form", "link", "base")
    assert len(page.named("meta")) == 2 and page.style.count("@import") == 0
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src", "style", "xlink:href"):
            assert not re.search("javascript|text/html|url\\(", attributes.get(name) or ""), tag
        assert not (attributes.get("src") or "").startswith("http"), tag


def test_markdown_of_records_holds_no_links() -> None:
    assert "](" not in plain("[x](javascript:alert(1)) ![x](https://example.org/x.png)")
    assert plain("[−9.4, −2.2] and a|b <b>") == "[−9.4, −2.2] and a\\|b &lt;b>"


def test_files_are_written_all_or_none_and_only_where_they_differ(tmp_path, monkeypatch):
    old = {tmp_path / name: "old" for name in "abc"}
    assert write_changed(old) == list(old) and not write_changed(old)
    new = dict.fromkeys(old, "new")
    written = []

    def full(handle):
        written.append(handle)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("repro.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_changed(new)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"} and len(list(tmp_path.iterdir())) == 3


def test_a_second_report_writes_nothing(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "reports/quick" / ONE_TABLE, tmp_path / "reports" / "smoke" / ONE_TABLE)
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path / "reports"))
    assert len(rebuild_report("smoke", list)) == 7
    monkeypatch.setattr("repro.report.pages.render_all", lambda *_: pytest.fail("made again"))
    assert rebuild_report("smoke", list) == []
    monkeypatch.undo()
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path / "reports"))
    page = tmp_path / "reports" / "smoke" / ONE_TABLE / "index.html"
    page.write_text("damaged")
    assert rebuild_report("smoke", list) == [page]


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


def test_a_table_says_what_was_run_and_marks_the_best() -> None:
    def cell(method: str, value: float | None) -> CellComparison:
        ours = None if value is None else Estimate(value, value - 1, value + 1, 3, "")
        ran = {} if value is None else {"network": "squeezenet"}
        return CellComparison(method, method, "e", "error", "%", "lower", {"network": "vgg16"}, None, ours, "", 3, ran)

    cells = [cell("A", 4.0), cell("B", 3.0), cell("C", None)]
    table = comparison_table("t", cells)
    assert table.count("<strong>") == 1 and "<strong>3.00 [2.00, 4.00]</strong>" in table
    assert (
        cell_name(cells[0]) == "A (network = squeezenet (for vgg16))" and cell_name(cells[2]) == "C (network = vgg16)"
    )


def test_a_page_begins_with_the_answer(tmp_path) -> None:
    folder = ROOT / "reports" / "quick" / ONE_TABLE
    judge = Judge(records_in(ROOT / "reports" / "quick"))
    page = page_text(folder, Table(ONE_TABLE), "quick", judge)
    start = page.index("<h1")
    answer = page[start : page.index("</section>", start)]
    assert "The answer" in answer and f"repro run {ONE_TABLE} --preset quick" in answer
    assert 'class="verdict' in answer and "Instead of" in answer and "Set-up of this run" not in answer
    failed = page_text(folder, Table(ONE_TABLE), "quick", judge, error="boom")
    assert "The answer" not in failed and "boom" in failed


def test_headings_of_one_name_get_ids_of_their_own() -> None:
    twice = '<h2 id="A">A<a href="#A">¶</a></h2><p>text</p>' * 2
    found = with_unique_headings(twice)
    assert found == '<h2 id="A">A<a href="#A">¶</a></h2><p>text</p><h2 id="A-2">A<a href="#A-2">¶</a></h2><p>text</p>'
