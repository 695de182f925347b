"""Every number in the README and in RESULTS.md comes from a committed record and can be traced to it."""

import hashlib
import json
import re
import shutil

import pytest

from repro.data import ENTRIES, describe
from repro.evidence.judgement import Judge
from repro.project import code_root
from repro.report.readme import (
    DOCUMENTS,
    generated_sections,
    measured_records,
    read_section,
    replace_section,
    results_table,
    results_text,
    summary_figures,
)

ROOT = code_root()
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
TAG = re.compile(r"`([0-9a-f]{8}|interactive)` · `([0-9a-f]{12})`")
RECORD = re.compile(r"\]\((reports/[a-z]+/[a-z0-9]+/\w+/result\.json)\)")
MEASURED = re.compile(r"\d[\d.,]*\s?(?:%|×|x faster|times|points|ms\b|images per)")


@pytest.fixture(scope="module", autouse=True)
def committed_reports():
    """Records are looked for where they are committed, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REPRO_PROJECT", "REPRO_REPORTS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def judge(committed_reports):
    return Judge(measured_records("quick"))


@pytest.fixture(scope="module")
def sections(judge):
    return generated_sections(describe(), judge)


@pytest.mark.parametrize(("document", "name"), [(d, name) for d, names in DOCUMENTS.items() for name in names])
def test_a_document_says_what_the_records_give(sections, document, name):
    shown = read_section((ROOT / document).read_text(encoding="utf-8"), name)
    assert shown == sections[name].strip("\n") + "\n", "run `repro report --preset quick` and commit what it changes"


def test_there_is_no_other_generated_section(sections):
    assert set(sections) == {name for names in DOCUMENTS.values() for name in names}
    for document, names in DOCUMENTS.items():
        assert (ROOT / document).read_text(encoding="utf-8").count(":begin (generated") == len(names)


def test_summary_figures_show_what_the_records_give(judge):
    for path, figure in summary_figures(judge).items():
        assert (ROOT / path).read_text(encoding="utf-8") == figure
        assert f"]({path})" in README


def test_the_readme_is_short_and_its_commands_come_first():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert {"make report", "make test"} <= {line.split("  ")[0] for line in lines[:40]}
    widths = [line.count("|") - 1 for line in lines if line.startswith("|")]
    assert max(widths) <= 5


def test_results_md_says_what_the_records_give():
    assert results_text() == RESULTS, "run `repro report --preset quick` and commit what it changes"


def test_every_table_names_its_record_by_run_and_hash():
    """Checked without our own code: the digits beside a link are those of the file behind it."""
    found = [(line, RECORD.search(line), TAG.search(line)) for line in RESULTS.splitlines() if RECORD.search(line)]
    assert {ROOT / link[1] for _, link, _ in found} == {
        path for path in (ROOT / "reports/quick").glob("*/*/result.json") if json.loads(path.read_text())["rows"]
    }
    for line, link, tag in found:
        assert tag, f"no run and hash in: {line[:120]}"
        content = (ROOT / link[1]).read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(tag[2])
        assert json.loads(content)["run_id"].startswith(tag[1])
        assert (ROOT / link[1]).with_name("index.html").exists()


def test_no_measured_number_stands_outside_the_generated_sections():
    text = README
    for name in DOCUMENTS["README.md"]:
        text = replace_section(text, name, "")
    found = [line for line in text.splitlines() if MEASURED.search(line)]
    assert not found, "a measured number belongs into a record, and from there into a generated table"


def test_a_number_edited_by_hand_is_noticed(sections):
    shown = read_section(README, "results")
    edited = re.sub(r": (\d+\.\d)", lambda found: f": 9{found[1]}", shown, count=1)
    assert edited != shown
    assert edited.strip() != sections["results"].strip()


def test_a_changed_record_is_noticed(tmp_path, monkeypatch):
    id = "scorecampp/table7_logit_drop"
    shutil.copytree(ROOT / "reports/quick" / id, tmp_path / "quick" / id)
    path = tmp_path / "quick" / id / "result.json"
    record = json.loads(path.read_text())
    record["provenance"]["wall_seconds"] += 1
    path.write_text(json.dumps(record))
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path))
    assert id not in results_table("quick", Judge(measured_records("quick"))), "its own hash no longer fits"


def test_missing_markers_are_named():
    with pytest.raises(ValueError, match="results:begin"):
        read_section("nothing", "results")


def test_every_data_set_is_listed_with_its_licence(sections):
    for entry in ENTRIES.values():
        home = entry.homepage if "://" in entry.homepage else f"../{entry.homepage}"
        assert f"| [{entry.name}]({home}) |" in sections["data"]
        assert entry.licence in sections["data"]
