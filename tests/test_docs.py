"""The site: it builds without a warning, every public name is on it, and it asks nothing of another host."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from repro.project import code_root

PUBLIC = ("explain", "metrics", "losses", "models", "training", "data")


def builder() -> str | None:
    beside = code_root() / ".venv-docs/bin/mkdocs"
    return str(beside) if beside.exists() else shutil.which("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    program = builder()
    if program is None:
        pytest.skip("MkDocs is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [program, "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=code_root(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def public_names(package: str) -> list[str]:
    tree = ast.parse((code_root() / "repro" / package / "__init__.py").read_text())
    return next(
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
    )


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_name_is_on_the_site(site, package):
    page = (site / "api" / f"{package}.html").read_text()
    shown = set(re.findall(rf'id="repro\.{package}\.(?:\w+\.)?(\w+)"', page))
    missing = [name for name in public_names(package) if name not in shown]
    assert not missing


def test_pages_load_nothing_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    fetched = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:)?//[^"]+"')
    assert not [page.name for page in pages if fetched.search(page.read_text())]


def test_every_document_is_in_the_navigation():
    text = (code_root() / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    documents = {path.relative_to(code_root() / "docs").as_posix() for path in (code_root() / "docs").rglob("*.md")}
    assert listed == documents


def test_a_citation_of_a_paper_leads_to_its_section():
    root = code_root()
    sources = [p for kind in ("repro/**/*.py", "repro/**/*.yaml", "docs/*.md") for p in root.glob(kind)]
    cited = {found for p in sources for found in re.findall(r"docs/papers/(\w+)\.md §([\d.]*\d)", p.read_text())}
    assert len(cited) > 10
    headings = {
        (path.stem, number)
        for path in (root / "docs/papers").glob("*.md")
        for number in re.findall(r"^#{2,3} ([\d.]*\d)\.? ", path.read_text(), flags=re.MULTILINE)
    }
    assert cited <= headings, sorted(cited - headings)
