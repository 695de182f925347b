"""pytest plugin: `pytest --claims reports/quick` turns each statement of `docs/stated.yaml` into a test item.

An item fails only where the records say the opposite of what we state; it is skipped, with the reason, where they
say nothing clear. Nothing is imported before the option is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from repro.evidence.judgement import StatedCheck


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--claims` and `--stated`."""
    group = parser.getgroup("repro", "claims of the reproduced papers")
    group.addoption("--claims", type=Path, metavar="REPORTS/PRESET", help="hold our statements against these records")
    group.addoption("--stated", type=Path, metavar="FILE", help="statements, by default docs/stated.yaml")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """With `--claims`, leave the ordinary tests alone."""
    return True if config.getoption("--claims") is not None else None


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--claims`, the items are the statements."""
    folder: Path | None = config.getoption("--claims")
    if folder is not None:
        items[:] = list(_Statements.from_parent(session, name=str(folder)).items_in(folder))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where nothing is stated, nothing can be wrong."""
    if session.config.getoption("--claims") is not None and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


class _Statements(pytest.Collector):
    """The statements about one preset."""

    def collect(self) -> Iterator[pytest.Item]:
        yield from self.items_in(Path(self.name))

    def items_in(self, folder: Path) -> Iterator[pytest.Item]:
        """One item per statement.

        Raises:
            pytest.UsageError: the folder is not one of a preset, or the statements cannot be read.
        """
        from repro.catalogue import PRESETS
        from repro.evidence.judgement import Judge, check_stated, load_stated
        from repro.evidence.record import records_in
        from repro.project import UserError, project_root

        preset = next((name for name in PRESETS if name == folder.resolve().name), None)
        if preset is None or not folder.is_dir():
            raise pytest.UsageError(f"--claims {folder}: expected a folder reports/<preset>, one of {PRESETS}")
        try:
            stated = load_stated(self.config.getoption("--stated") or project_root() / "docs" / "stated.yaml")
        except UserError as error:
            raise pytest.UsageError(str(error)) from None
        for check in check_stated(stated, preset, Judge(records_in(folder))):
            yield _Statement.from_parent(self, name=check.claim.id, check=check)


class _Statement(pytest.Item):
    """One claim with our stated verdict."""

    def __init__(self, *, check: StatedCheck, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._check = check

    def runtest(self) -> None:
        found = self._check.found
        sentence = f"we state {self._check.stated.word}, the records say {found.label}. {found.reason}"
        if self._check.contradicted:
            pytest.fail(sentence, pytrace=False)
        if not self._check.confirmed:
            pytest.skip(sentence)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"claim {self.name}"
