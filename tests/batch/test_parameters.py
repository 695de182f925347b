"""Parameters are checked before a kernel starts; every message names the value and the way out."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import papermill
import pytest
import yaml
from typer.testing import CliRunner

from repro.catalogue import Table, all_tables
from repro.cli import app
from repro.parameters import parse_assignments, parse_parameters, preset_values, read_parameters, strict_yaml
from repro.project import UserError, code_root
from repro.report.experiment import Experiment

GOOD = {"preset": "quick", "images": 50, "rate": 0.1, "method": "label", "seeds": [0, 1]}


@pytest.fixture
def table(project: Callable[[str, str], Path], tmp_path: Path) -> Table:
    project("ega/table1", "")
    write(tmp_path, GOOD)
    return Table("ega/table1")


def write(root: Path, values: object) -> None:
    path = root / "params" / "quick" / "ega" / "table1.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))


def test_smoke_is_the_notebook_itself(table: Table) -> None:
    expected = {"preset": "smoke", "images": 4, "rate": 0.5, "method": "predicted", "seeds": [0]}
    assert preset_values(table, "smoke") == expected


def test_a_preset_is_read_and_overridden(table: Table) -> None:
    assert preset_values(table, "quick") == GOOD
    assert preset_values(table, "quick", {"images": 7})["images"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imags": 3}, "unknown parameter 'imags': did you mean 'images'?"),
        ({"images": 0}, "'images' = 0: expected PositiveInt"),
        ({"images": True}, "'images' = True: expected PositiveInt"),
        ({"images": "fifty"}, "'images' = 'fifty': expected PositiveInt"),
        ({"rate": "0.1"}, "in quotes it is text"),
        ({"method": "predict"}, "did you mean 'predicted'?"),
        ({"method": "zzz"}, "allowed: predicted, label"),
        ({"seeds": [0, "one"]}, "'seeds'"),
    ],
)
def test_bad_values_are_named(table: Table, tmp_path: Path, change: dict, message: str) -> None:
    write(tmp_path, GOOD | change)
    with pytest.raises(UserError, match=r"params/quick/ega/table1\.yaml") as caught:
        preset_values(table, "quick")
    assert message in str(caught.value)


def test_a_preset_file_must_be_complete(table: Table, tmp_path: Path) -> None:
    write(tmp_path, {name: value for name, value in GOOD.items() if name != "images"})
    with pytest.raises(UserError, match=r"missing parameter 'images' \(PositiveInt\): number of images"):
        preset_values(table, "quick")
    # an override is no substitute: the file itself stays incomplete
    with pytest.raises(UserError, match="missing parameter 'images'"):
        preset_values(table, "quick", {"images": 3})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "1: 2\n", "\x00", ""])
def test_files_that_are_no_mapping(table: Table, tmp_path: Path, text: str) -> None:
    (tmp_path / "params" / "quick" / "ega" / "table1.yaml").write_text(text)
    with pytest.raises(UserError):
        preset_values(table, "quick")


@pytest.mark.parametrize("line", ["images = 3", "images: int", "images: int = len('abc')", "import os"])
def test_a_parameters_cell_holds_typed_literals_only(line: str) -> None:
    with pytest.raises(UserError, match="line 1"):
        parse_parameters(line)


@pytest.mark.parametrize("table", all_tables(), ids=lambda table: table.id)
def test_papermill_sees_every_parameter(table: Table) -> None:
    seen = papermill.inspect_notebook(str(table.notebook))
    assert {p.name: p.annotation for p in read_parameters(table)} == {
        name: found["inferred_type_name"] for name, found in seen.items()
    }


def test_a_name_that_papermill_injects_must_be_declared(table: Table) -> None:
    values: dict[str, object] = {parameter.name: parameter.default for parameter in read_parameters(table)}
    namespace = values | {"In": ["", "imagess = 3", "# Parameters\nimagess = 2\nseeds = [1]\n"], "imagess": 2}
    with pytest.raises(UserError, match="unknown parameter 'imagess': did you mean 'images'"):
        Experiment.open(table.id, namespace)
    assert Experiment.open(table.id, values | {"In": ["imagess = 3", "# Parameters\nimages = 2"]}).preset == "smoke"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1:30", "1:30"), ("010", 10), ("1_000", "1_000"), ("yes", "yes"), ("1e-4", 1e-4), ("2026-01-01", "2026-01-01"),
     ("0x10", 16), ("~", None), ("True", True), ("<<", "<<")],
)  # fmt: skip
def test_yaml_is_version_1_2(text: str, value: object) -> None:
    found = strict_yaml(text)
    assert found == value and type(found) is type(value)


LAUGHS = "\n".join(["a0: &a0 [lol, lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: 1\nimages: 2", "a key occurs twice"),
        (LAUGHS, "aliases"),
        ("images: " + "[" * 50_000, "nested too deeply"),
        ("images: " + "9" * 5000, "not valid YAML"),
        ("a: " + "x" * 2**20, "larger than"),
        ("images: 1" + "0" * 30, "is larger than 1e+12"),
        ("x" * 900 + ": 1", "unknown parameter 'xxx"),
    ],
)
def test_hostile_files_get_a_short_message(table: Table, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params" / "quick" / "ega" / "table1.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        preset_values(table, "quick")
    assert message in str(refused.value) and len(str(refused.value)) < 3000


def test_a_folder_in_place_of_a_file(table: Table, tmp_path: Path) -> None:
    path = tmp_path / "params" / "quick" / "ega" / "table1.yaml"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        preset_values(table, "quick")


def test_a_file_names_the_preset_of_its_folder(table: Table, tmp_path: Path) -> None:
    write(tmp_path, GOOD | {"preset": "paper"})
    with pytest.raises(UserError, match="preset = 'paper', expected 'quick'"):
        preset_values(table, "quick")


@pytest.mark.parametrize("text", ["images", "=3", "images=[1"])
def test_assignments_of_the_command_line(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_assignments([text])
    assert parse_assignments(["seeds=[0, 1]"]) == {"seeds": [0, 1]}


@pytest.mark.parametrize(
    "arguments",
    [["run", "ega/tabl1"], ["run", "--preset", "quik"], ["run", "--set", "imags=3"], ["run", "--set", "images=-1"]],
)
def test_the_command_refuses_before_any_kernel(table: Table, tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "nope"], "--preset nope: allowed: smoke, quick, paper"),
        (["run", "--preset", "quik"], "did you mean 'quick'? (allowed: smoke, quick, paper)"),
        (["run", "--set", "images=3", "--set", "images=4"], "--set images: given twice"),
        (["train", "ega", "table1", "--devices", "9999"], "--devices 9999: this machine has"),
    ],
)
def test_messages_of_the_command(table: Table, arguments: list[str], message: str) -> None:
    error = str(CliRunner().invoke(app, arguments).exception)
    assert message in error and error.count("allowed") <= 1


def test_a_terminal_of_ascii_gets_escapes(table: Table) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(code_root())}
    command = [sys.executable, "-m", "repro.cli", "run", "--set", "ä=1"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "unknown parameter '\\xe4'" in found.stderr and "Traceback" not in found.stderr
