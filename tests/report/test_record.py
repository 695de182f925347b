"""A record is what was written, where it was written: anything changed is refused with a sentence, and only it."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from repro.catalogue import Table
from repro.cli import app
from repro.evidence.record import InvalidRecord, load_record, read_records
from repro.files import content_hash
from repro.project import code_root
from repro.report.pages import write_dashboard
from repro.report.readme import results_text

TABLE = "scorecampp/table6_gating"
OTHER = "scorecampp/table7_logit_drop"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two committed records in a reports folder of their own."""
    for id in (TABLE, OTHER):
        shutil.copytree(code_root() / "reports" / "quick" / id, tmp_path / "quick" / id)
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path))
    return tmp_path / "quick" / TABLE


def rewrite(folder: Path, change: Callable[[dict], object], hashed: bool = True) -> None:
    """Change the content of a record, with a hash that fits it or with the old one."""
    path = folder / "result.json"
    content = json.loads(path.read_text())
    change(content)
    if hashed:
        content.pop("record_hash")
        content["record_hash"] = content_hash(content)
    path.write_text(json.dumps(content))


def test_the_committed_records_are_valid() -> None:
    records, problems = read_records(code_root() / "reports" / "quick")
    assert len(records) == 25 and not problems
    assert not [id for id, record in records.items() if record.trial]


FORGED: dict[str, tuple[Callable[[dict], object], str]] = {
    "bool for a number": (lambda c: c["rows"][0].update(value=True), "rows.0.value"),
    "text for a number": (lambda c: c["rows"][0].update(value="1.0"), "rows.0.value"),
    "negative n": (lambda c: c["rows"][0].update(n=-5), "rows.0.n"),
    "value outside its interval": (lambda c: c["rows"][0].update(low=90.0, high=95.0), "outside its interval"),
    "half an interval": (lambda c: c["rows"][0].update(low=0.0), "two ends"),
    "a row twice": (lambda c: c["rows"].append(c["rows"][0]), "occurs twice"),
    "a foreign id": (lambda c: c.update(id=OTHER), f"belongs into quick/{OTHER}"),
    "an id that climbs": (lambda c: c.update(id="../../etc"), "id: String should match"),
    "another preset": (lambda c: c.update(preset="paper"), "name another preset"),
    "a trial": (lambda c: c.update(trial=True), "belongs into trial/quick"),
    "a figure elsewhere": (lambda c: c["figures"][0].update(file="/etc/passwd"), "figures.0.file"),
    "a hidden figure": (lambda c: c["figures"][0].update(file=".."), "figures.0.file"),
    "another picture": (lambda c: c["figures"][0].update(sha256="0" * 64), "is not the one of the record"),
    "parameters changed": (lambda c: c["parameters"].update(images=2), "parameters_hash does not belong"),
    "a seed of 70 bits": (lambda c: c["rows"][0].update(seed=2**70), "64 bits"),
    "an unknown field": (lambda c: c.update(note="x" * 10**6), "note: Extra inputs"),
    "a long name": (lambda c: c["rows"][0].update(method="x" * 10**6), "rows.0.method"),
    "an older schema": (lambda c: c.update(schema_version=2), "schema version 3"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_record_is_refused_even_with_a_hash_that_fits(folder: Path, case: str) -> None:
    change, message = FORGED[case]
    rewrite(folder, change)
    with pytest.raises(InvalidRecord) as refused:
        load_record(folder)
    assert message in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"title"', '"title": "x", "title"', "occurs twice"),
        ('"skipped_images": 0', '"skipped_images": ' + "9" * 5000, "cannot be read"),
        ('"readings": {', '"readings": {"x": ' + "[" * 100_000 + "]" * 100_000 + ", ", "cannot be read"),
        ('"readings": {', '"readings": {"x": ' + "[" * 20 + "]" * 20 + ", ", "nested deeper"),
        ('"value": 23.6', '"value": NaN, "x": 3.6', "cannot be read"),
    ],
)
def test_a_hostile_file_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "result.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidRecord, match=message):
        load_record(folder)


def mutate(content: dict, chance: random.Random) -> None:
    """One change somewhere: another value, another type, a name, an entry more or less."""
    node: dict | list = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = chance.choice(keys)
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.1:
            break
        node = inner
    wrong = [None, True, -1, 0, 1.5, 10**30, 1e308, "", "x", "../..", "a" * 9999, [], {}, [[1]], {"a": {"b": []}}]
    action = chance.randrange(4)
    if action == 0:
        node.pop(key)
    elif action == 1 and isinstance(node, list):
        node.append(copy.deepcopy(inner))
    elif action == 2 and isinstance(inner, int | float) and not isinstance(inner, bool):
        node[key] = inner * 1.0000001 + 1e-9
    else:
        node[key] = chance.choice([value for value in wrong if value != inner or type(value) is not type(inner)])


@pytest.mark.faults("mutated record", "refused in one sentence; the hash notices every change")
def test_mutated_records(
    folder: Path, request: pytest.FixtureRequest, chance: random.Random, injected: Callable[[int], None]
) -> None:
    path = folder / "result.json"
    whole = path.read_text()
    cases = request.config.getoption("--fuzz-cases") // 2
    for number in range(cases):
        content = json.loads(whole)
        mutate(content, chance)
        assert content != json.loads(whole) or json.dumps(content) != json.dumps(json.loads(whole))
        if number % 2:  # with a hash that fits, the schema alone has to bear it: anything but a traceback
            content.pop("record_hash", None)
            content["record_hash"] = content_hash(content)
        path.write_text(json.dumps(content))
        try:
            load_record(folder)
        except InvalidRecord as problem:
            assert len(str(problem)) < 400
        else:
            assert number % 2, "a changed record was accepted"
    injected(cases)


def test_one_bad_record_is_named_and_stops_nothing(folder: Path) -> None:
    rewrite(folder, lambda content: content["rows"][0].update(value=1.0), hashed=False)
    listed = CliRunner().invoke(app, ["list"])
    assert listed.exit_code == 0
    assert f"left out: reports/quick/{TABLE}/result.json: result.json was changed" in listed.stdout
    dashboard = write_dashboard("quick").read_text()
    assert "left out" in dashboard and "was changed after it was written" in dashboard
    results = results_text()
    assert f"left out: `reports/quick/{TABLE}`" in results and f"repro run {OTHER} --preset quick" in results


def test_a_record_in_another_tables_folder_is_refused(folder: Path) -> None:
    moved = Table(OTHER).report("quick")
    shutil.copytree(folder, moved, dirs_exist_ok=True)
    with pytest.raises(InvalidRecord, match=f"belongs into quick/{TABLE}"):
        load_record(moved)
