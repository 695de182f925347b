"""Parameters are checked before a kernel starts; every message names the value and the way out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from repro.catalogue import Table
from repro.cli import app
from repro.parameters import parse_assignment, parse_parameters, preset_values
from repro.project import UserError

GOOD = {"preset": "quick", "images": 50, "rate": 0.1, "method": "scorecam", "seeds": [0, 1]}


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
    expected = {"preset": "smoke", "images": 4, "rate": 0.5, "method": "gradcam", "seeds": [0]}
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
        ({"rate": "1e-4"}, "YAML reads this as text"),
        ({"method": "scorcam"}, "did you mean 'scorecam'?"),
        ({"method": "zzz"}, "allowed: gradcam, scorecam"),
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


@pytest.mark.parametrize("text", ["images", "=3", "images=[1"])
def test_assignments_of_the_command_line(text: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_assignment(text)
    assert parse_assignment("seeds=[0, 1]") == ("seeds", [0, 1])


@pytest.mark.parametrize(
    "arguments",
    [["run", "ega/tabl1"], ["run", "--preset", "quik"], ["run", "--set", "imags=3"], ["run", "--set", "images=-1"]],
)
def test_the_command_refuses_before_any_kernel(table: Table, tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "reports").exists()
