"""Which records an edit makes stale: only those whose notebook reaches the edited module, and only for its meaning."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from repro import execution
from repro.catalogue import all_tables
from repro.evidence import provenance
from repro.project import code_root

Edit = Callable[[str, str, str], dict[str, int]]


@pytest.fixture
def stale_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """A function that edits a module of a copied tree and counts the tables of each paper that become stale."""
    shutil.copytree(code_root() / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(execution, "code_root", lambda: tmp_path)
    before = {table.id: provenance.inputs_hash(table, "") for table in all_tables()}

    def edit(module: str, old: str, new: str) -> dict[str, int]:
        path = tmp_path / "repro" / module
        whole = path.read_text()
        assert old in whole
        path.write_text(whole.replace(old, new, 1))
        stale = [table.paper for table in all_tables() if provenance.inputs_hash(table, "") != before[table.id]]
        path.write_text(whole)
        return {paper: stale.count(paper) for paper in ("ega", "dfg", "scorecampp")}

    return edit


@pytest.mark.parametrize(
    ("module", "old", "new", "papers"),
    [
        ("losses/dfg.py", "return ", "return 2 * ", {"dfg"}),
        ("losses/cam.py", "return ", "return 2 * ", {"ega"}),
        ("explain/augmented.py", "return ", "return 2 * ", {"scorecampp"}),
        ("losses/dfg.py", "return ", "# a comment\n    return ", set()),
        ("losses/cam.py", '"""', '"""Other words. ', set()),
        ("losses/cam.py", '"""', '# Copyright: somebody else\n"""', set()),
        ("losses/__init__.py", "__all__", "others = __all__", set()),
    ],
)
def test_an_edit_makes_stale_what_it_can_change(
    stale_after: Edit, module: str, old: str, new: str, papers: set[str]
) -> None:
    stale = stale_after(module, old, new)
    assert {paper for paper, count in stale.items() if count} == papers, stale


def test_a_training_depends_on_what_it_reaches() -> None:
    code = "from repro.training.dfg import train_dfg"
    reaching = execution.source_hash(code)
    assert reaching == execution.source_hash(f"# train\n{code}")
    assert reaching == execution.source_hash("from repro.training.dfg import train_dfg")
    assert reaching != execution.source_hash("from repro.training.dfg import train_dfg as train")
    assert reaching != execution.source_hash(code, without=["repro.losses"])
