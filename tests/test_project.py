"""The project as a whole: notebooks are thin and stripped, presets complete, the lock is the only list of versions."""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import repro
from repro.catalogue import PRESETS, Table, all_tables
from repro.parameters import preset_values, read_parameters
from repro.project import code_root

TABLES = all_tables()
BY_ID = [pytest.param(table, id=table.id) for table in TABLES]
MAX_CELL_LINES, MAX_LINES, MAX_CELLS = 12, 120, 16


def test_there_are_notebooks() -> None:
    assert len(TABLES) >= 11


@pytest.mark.parametrize("table", BY_ID)
def test_a_notebook_is_thin_and_stripped(table: Table) -> None:
    notebook = nbformat.read(table.notebook, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    others = [cell for cell in code if "check" not in cell.metadata.get("tags", [])]
    assert not any(cell.outputs or cell.execution_count for cell in others), "strip the outputs before committing"
    assert len(others) == len(code) - 1
    assert table.read().pinned.splitlines()[-1].startswith("figures: "), "python notebooks/pin.py stores the numbers"
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.title, "metadata.title names the page"
    assert len(code) <= MAX_CELLS
    lines = {index: cell.source.count("\n") + 1 for index, cell in enumerate(code)}
    parameters = [index for index, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    long = {index: count for index, count in lines.items() if count > MAX_CELL_LINES and index not in [0, *parameters]}
    assert not long, f"cells of more than {MAX_CELL_LINES} lines"
    assert sum(lines.values()) <= MAX_LINES
    tree = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree), "code belongs in the package"


@pytest.mark.parametrize("table", BY_ID)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_complete_and_names_itself(table: Table, preset: str) -> None:
    assert preset_values(table, preset)["preset"] == preset


@pytest.mark.parametrize("table", BY_ID)
def test_every_parameter_is_explained(table: Table) -> None:
    assert all(parameter.help for parameter in read_parameters(table))


@pytest.mark.parametrize("table", BY_ID)
def test_a_notebook_opens_and_saves_its_own_record(table: Table) -> None:
    source = "\n".join(table.read().code)
    assert f'Experiment.open("{table.id}", globals())' in source
    assert source.rstrip().endswith("experiment.save()")


def locked(name: str = "requirements.lock") -> dict[str, str]:
    text = (code_root() / name).read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cluster.lock", "requirements-docs.lock"])
def test_the_lock_has_hashes_no_addresses_and_every_dependency(name: str) -> None:
    text = (code_root() / name).read_text()
    assert "://" not in text
    assert text.count("==") <= text.count("--hash=sha256:")
    project = tomllib.loads((code_root() / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    whole = project["dependencies"] + extras["notebooks"] + extras["dev"]
    wanted = next((extras[extra] for extra in ("cluster", "docs") if extra in name), whole)
    names = {re.split(r"[<>=!~\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names <= {package.lower() for package in locked(name)}


def test_conda_installs_the_same_lock() -> None:
    environment = yaml.safe_load((code_root() / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock"]
    others = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert {re.split(r"[<>=]", entry)[0] for entry in others} == {"python", "pip"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(code_root()).with_suffix("").parts)


LAYERS = [
    "batch",
    "studies",
    "report",
    "evidence",
    "training",
    "explain",
    "metrics",
    "losses",
    "models",
    "data",
]


def test_arrows_point_down_only() -> None:
    """A package imports only from those below it; `evidence` may not reach `training` or anything that trains."""
    allowed = {
        "batch": {"report", "evidence"},
        "studies": set(LAYERS) - {"batch", "studies"},
        "report": {"evidence"},
        "evidence": set(),
        "training": {"metrics", "losses", "models", "data", "explain"},
        "explain": {"models"},
        "metrics": {"data", "models"},
        "losses": {"data", "models"},
        "models": {"data"},
        "data": set(),
    }
    wrong = []
    for path in (code_root() / "repro").rglob("*.py"):
        package = path.relative_to(code_root() / "repro").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if package in allowed and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repro."):
                target = node.module.split(".")[1]
                if target in allowed and target != package and target not in allowed[package]:
                    wrong.append(f"{module_of(path)} imports {node.module}")
    assert not wrong


def test_the_version_is_the_newest_of_the_changelog_and_the_citation() -> None:
    newest = re.search(r"^## ([\d.]+) \(([\d-]+)\)$", (code_root() / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((code_root() / "CITATION.cff").read_text())
    assert newest is not None
    assert (citation["version"], str(citation["date-released"])) == newest.groups()
    assert repro.__version__ == newest[1]
