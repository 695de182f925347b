"""Every number of docs/findings.md stands in a finding of the committed record it links to."""

import re

from repro.evidence.record import load_record
from repro.project import code_root

PATH = code_root() / "docs" / "findings.md"
QUOTE = re.compile(r"^> (?P<sentence>.+) \(\[(?P<id>[\w/]+)\]\((?P<link>\S+/result\.json)\)\)$")
LINES = PATH.read_text(encoding="utf-8").splitlines()


def test_every_quoted_sentence_is_a_finding_of_the_record_it_links_to() -> None:
    quoted = [line for line in LINES if line.startswith(">")]
    assert quoted
    for line in quoted:
        match = QUOTE.match(line)
        assert match, f"a quotation needs its record: {line}"
        record = load_record((PATH.parent / match["link"]).resolve().parent)
        assert record.id == match["id"]
        assert match["sentence"] in record.findings, f"{record.id} says no longer: {match['sentence']}"


def test_no_measured_number_stands_outside_a_quotation() -> None:
    free = [line for line in LINES if not line.startswith(">")]
    loose = [
        line
        for line in free
        if re.search(r"\d\.\d|\d ?%|(?<!\w)[+-]\d", re.sub(r"\]\([^)]*\)|`[^`]*`|§[\d.]+", "", line))
    ]
    assert not loose, loose
