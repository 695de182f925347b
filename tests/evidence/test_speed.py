"""Speed records: ratios by hand, honest bars, and a table that hides none of them."""

import json
import sys
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from repro.project import code_root
from repro.report.readme import NOTHING, load_speed_records, speed_table

sys.path.insert(0, str(code_root() / "benchmarks"))
from speed_record import Comparison, SpeedRecord, compared, environment


def record(*comparisons):
    return SpeedRecord(name="explain", environment=environment(), comparisons=list(comparisons), details={})


def read_back(written):
    return json.loads(written.model_dump_json(), object_hook=lambda found: SimpleNamespace(**found))


def test_ratios_are_taken_within_rounds():
    found = compared("x", [1.0, 2.0, 1.0], [3.0, 4.0, 5.0], "peer", unit="s", threads=1, bar=3.0)
    assert (found.ours, found.peer) == (1.0, 4.0)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (3.0, 2.0, 5.0)
    assert found.met


@pytest.mark.parametrize(("ratio_is", "met"), [("peer / ours", True), ("ours / peer", False)])
def test_a_bar_is_a_lower_one_for_speed_ups_and_an_upper_one_for_costs(ratio_is, met):
    ours, peer = ([2.0], [6.0]) if ratio_is == "peer / ours" else ([6.0], [2.0])
    found = compared("x", ours, peer, "peer", unit="s", threads=1, ratio_is=ratio_is, bar=2.5)
    assert (found.ratio, found.met, found.ratio_low) == (3.0, met, None)


def test_a_limit_has_no_peer():
    found = compared("x", [300.0], None, "limit", unit="s", threads=2, ratio_is="ours", bar=240.0)
    assert (found.ratio, found.peer, found.met) == (300.0, None, False)


def test_rounds_must_match():
    with pytest.raises(ValueError, match="2 rounds of ours, 1 of peer"):
        compared("x", [1.0, 2.0], [1.0], "peer", unit="s", threads=1)


def test_a_verdict_that_does_not_follow_is_refused():
    fields = compared("x", [1.0], [2.0], "peer", unit="s", threads=1, bar=3.0).model_dump()
    assert fields["met"] is False
    with pytest.raises(ValidationError, match="does not follow"):
        Comparison.model_validate(fields | {"met": True})


def test_the_table_shows_a_bar_that_is_not_met():
    slow = compared("Score-CAM", [1.0], [2.0], "torchcam", unit="s", threads=1, bar=3.0)
    text = speed_table([read_back(record(slow))])
    assert "| 2 (peer / ours) | ≥ 3 | **no** | 1 |" in text
    assert "torchcam: 2 s" in text
    assert "0 of 1 demands are met" in text
    assert environment().processor in text
    assert speed_table([]) == NOTHING


def test_records_are_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_PROJECT", str(tmp_path))
    written = record(compared("x", [1.0], [2.0], "peer", unit="s", threads=1))
    assert written.save(quick=True).parent.name == "output"
    assert load_speed_records() == []
    path = written.save(quick=False)
    assert path.relative_to(tmp_path).as_posix() == "benchmarks/results/explain.json"
    assert load_speed_records() == [read_back(written)]
    assert path.relative_to(tmp_path).as_posix() == "benchmarks/results/explain.json"


def test_committed_records_are_what_the_benchmarks_write():
    for path in (code_root() / "benchmarks" / "results").glob("*.json"):
        SpeedRecord.model_validate_json(path.read_text("utf-8"))


def test_the_environment_names_the_processor_and_no_host():
    import platform

    found = environment()
    assert "cores" in found.processor
    assert platform.node() not in found.model_dump_json()
