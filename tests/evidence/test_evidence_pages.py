"""Pages made from records: no verdict in a smoke run, escaped text, no script, no broken link; our statements."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from synthetic_records import printed_records, sampled

from repro.evidence.judgement import Judge, found_verdicts, load_stated
from repro.evidence.record import records_in
from repro.project import UserError, code_root
from repro.report.pages import write_dashboard
from repro.report.readme import results_text
from repro.report.verdict_views import Scale, notebook_verdicts, print_verdicts, state_verdicts

TABLE3 = "scorecampp/table3_imagenet_resnet18"
VERDICT_WORDS = re.compile(r"\b(supported|contradicted|inconclusive)\b", re.IGNORECASE)
NASTY = '<script>alert("x")</script> & <b>bold</b>'


class Page(HTMLParser):
    """Collects what a page must and must not have, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "img", "col", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """All pages of a smoke run and of a quick run on other data, and RESULTS.md."""
    root = tmp_path_factory.mktemp("project")
    for preset in ("smoke", "quick"):
        records = printed_records(preset, dataset="scenes", network="small_cnn")
        records[TABLE3] = with_samples(preset)
        for id, record in records.items():
            record.save(root / "reports" / preset / id)
    (root / "notebooks").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_PROJECT", str(root))
        patch.delenv("REPRO_REPORTS", raising=False)
        for preset in ("smoke", "quick"):
            write_dashboard(preset)
        (root / "RESULTS.md").write_text(results_text())
        yield root


def with_samples(preset):
    rng = np.random.default_rng(0)
    means = {(m, "average_drop"): v for m, v in (("scorecampp", 4.0), ("scorecam", 8.0), ("gradcam", 9.0))}
    record = sampled(TABLE3, means, 60, lambda n: rng.normal(0, 2, n), preset=preset, findings=[NASTY],
                     deviations=[NASTY], readings={"scorecampp.metric.score_space": "probability"})  # fmt: skip
    for key in list(record.samples):
        record.samples[f"{key}|score_space=logit"] = [v + 1 for v in record.samples[key]]
    marked = [
        row.model_copy(update={"setting": {"score_space": "logit"}, "value": row.value + 1}) for row in record.rows
    ]
    record.rows.extend(marked)
    return record


def html_files(root, preset):
    return sorted((root / "reports" / preset).glob("*.html"))


def test_every_page_exists(pages):
    for preset in ("smoke", "quick"):
        names = {path.name for path in html_files(pages, preset)}
        claims = {f"claims-{paper}.html" for paper in ("ega", "dfg", "scorecampp")}
        assert names == {"index.html", "readings.html", "differences.html"} | claims


def test_a_smoke_run_shows_no_verdict(pages):
    for path in html_files(pages, "smoke"):
        text = Page(path.read_text()).text
        assert not VERDICT_WORDS.search(text), f"{path.name}: {VERDICT_WORDS.search(text)}"
        assert "SMOKE" in text


def test_a_quick_run_answers_and_says_where(pages):
    text = Page((pages / "reports/quick/claims-scorecampp.html").read_text()).text
    assert "≠ not comparable" in text
    assert "✓ supported" in text
    assert "data set scenes (paper: imagenet)" in text
    assert re.search(r"Of \d+ distinct comparisons at the 95 % level", text)
    index = Page((pages / "reports/quick/index.html").read_text()).text
    assert "Do the papers hold?" in index


@pytest.mark.parametrize("preset", ["smoke", "quick"])
def test_pages_are_safe_accessible_and_linked(pages, preset):
    for path in html_files(pages, preset):
        source = path.read_text()
        page = Page(source)
        assert "alert(" not in source or "&lt;script&gt;" in source
        assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link")]
        assert not re.search(r"""(src|href)=["'](https?:)?//""", source)
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on")]
            if tag in ("svg", "img"):
                assert attributes.get("aria-label") or attributes.get("alt"), f"{path.name}: {tag} without text"
            if tag == "a" and not attributes["href"].startswith("#"):
                file, _, anchor = attributes["href"].partition("#")
                target = path.parent / file
                assert target.exists(), f"{path.name} links to {file}"
                if anchor:
                    assert f'id="{anchor}"' in target.read_text(), f"{path.name} links to {file}#{anchor}"


def test_text_of_records_is_escaped(pages):
    for name in ("claims-scorecampp.html", "differences.html"):
        source = (pages / "reports/quick" / name).read_text()
        assert "&lt;script&gt;" in source
        assert "<b>bold</b>" not in source
    results = (pages / "RESULTS.md").read_text()
    assert "&lt;script>" in results
    assert "<script>" not in results


def test_plots_stand_on_the_pages(pages):
    claims = (pages / "reports/quick/claims-scorecampp.html").read_text()
    assert "Orderings and directions" in claims
    assert "ours over the paper" in claims
    readings = Page((pages / "reports/quick/readings.html").read_text())
    assert any("minus “probability”" in (a.get("aria-label") or "") for tag, a in readings.tags if tag == "svg")


def test_results_come_from_the_quick_records_only(pages):
    text = (pages / "RESULTS.md").read_text()
    assert "## The quick preset" in text
    assert "## The paper preset" not in text
    assert "✓ supported (in our data, " in text
    assert "`repro run scorecampp/table3_imagenet_resnet18 --preset quick`" in text


@pytest.mark.parametrize(("low", "high"), [(-3.0, 17.0), (0.0, 0.004), (-1200.0, 5.0)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = Scale(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert Scale(low, high, 0, 100)(float("inf")) == 100


class Lines:
    """Stands for a console."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text, **_):
        self.lines.append(text)


def test_the_terminal_says_the_same(pages, monkeypatch):
    monkeypatch.setenv("REPRO_PROJECT", str(pages))
    console = Lines()
    print_verdicts("quick", ["scorecampp"], console)
    assert any(
        "scorecampp.c09  ≠ not comparable; in our data, 18 of 18 comparisons: ✓ supported" in x for x in console.lines
    )
    smoke = Lines()
    print_verdicts("smoke", [], smoke)
    assert smoke.lines == ["A smoke run checks the plumbing on embedded data; it never gets a verdict."]
    with pytest.raises(UserError, match="did you mean 'dfg'"):
        print_verdicts("quick", ["dgf"], console)


def test_statements_are_written_from_records_and_never_from_a_smoke_run(pages, monkeypatch):
    monkeypatch.setenv("REPRO_PROJECT", str(pages))
    assert "statements about the quick preset" in state_verdicts("quick")
    stated = load_stated(pages / "docs" / "stated.yaml")
    assert stated["quick"]["scorecampp.c09"] == "supported"
    with pytest.raises(UserError, match="no verdict"):
        state_verdicts("smoke")


def test_what_is_stated_is_what_the_committed_records_say():
    """In both directions: no claim is stated that was not judged, and none was judged that is not stated."""
    stated = load_stated(code_root() / "docs" / "stated.yaml")
    assert stated
    for preset, verdicts in stated.items():
        assert verdicts == found_verdicts(Judge(records_in(code_root() / "reports" / preset))), preset


def imported(path):
    """Names of the modules a file imports when it is loaded."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def test_dashboards_do_not_load_torch():
    seen, waiting = set(), ["repro.report.pages", "repro.report.verdict_views", "repro.report.readme"]
    while waiting:
        name = waiting.pop()
        base = code_root() / Path(*name.split("."))
        path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)
        if name not in seen and path is not None:
            seen.add(name)
            waiting += imported(path)
            assert not {"torch", "torchvision", "captum"} & set(imported(path)), f"{name} loads torch"
    assert {"repro.evidence.judgement", "repro.report.pages"} <= seen


def test_a_notebook_shows_its_verdicts(pages, monkeypatch):
    monkeypatch.setenv("REPRO_PROJECT", str(pages))
    smoke, quick = (notebook_verdicts(with_samples(preset)) for preset in ("smoke", "quick"))
    assert "says nothing about the paper" in smoke
    assert not VERDICT_WORDS.search(smoke)
    assert "scorecampp.c08a" in quick
    assert "✓ supported (in our data, " in quick


def test_judging_is_repeatable():
    record = with_samples("quick")
    answers = [[v.label for v in Judge({TABLE3: record}).claims("scorecampp")] for _ in range(2)]
    assert answers[0] == answers[1]
