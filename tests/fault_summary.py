"""Options of the test run, and the summary of injected faults in `docs/reliability.md`."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

COLUMNS = "| fault | what must hold | injected | lost | verdict |\n|---|---|---:|---:|---|\n"
_Rows = dict[tuple[str, str], list[int]]
ROWS = pytest.StashKey[_Rows]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("repro")
    group.addoption("--fault-moments", type=int, default=3, help="random moments of each kind of kill (full: 20)")
    group.addoption("--fuzz-cases", type=int, default=300, help="mutated files and command lines (full: 2000)")
    group.addoption("--write-reliability", action="store_true", help="write docs/reliability.md from this run's faults")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> int:
    """How many random moments each kind of kill is tried at."""
    return int(request.config.getoption("--fault-moments"))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Seeded by the test's name: the same moments in every run."""
    return random.Random(request.node.nodeid)


@pytest.fixture
def injected(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """`injected(n)` counts n injected faults for the summary; a test that never calls it counts as one."""

    def count(number: int) -> None:
        request.node.user_properties.append(("injected", number))

    return count


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Attach the words of `@pytest.mark.faults(what, must)` to the report, which also crosses to xdist's controller.

    `{id}` in `what` becomes the id of the parameter set, for tests whose parameters are faults of their own.
    """
    marker = item.get_closest_marker("faults")
    if call.when == "setup" and marker is not None:
        what, must = marker.args
        parameters = getattr(item, "callspec", None)
        item.user_properties.append(("fault", f"{what.format(id=parameters.id if parameters else '')}\0{must}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A fault test that would leave an empty line in the summary is an error of its author."""
    for item in items:
        marker = item.get_closest_marker("faults")
        if marker is not None and len(marker.args) != 2:
            raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.faults('what is injected', 'what must hold')")


class _Summary:
    """Collects the fault tests of a session; lives in the controlling process only."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows = config.stash[ROWS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if "fault" not in properties or not (report.when == "call" or report.skipped):
            return
        what, must = str(properties["fault"]).split("\0")
        if report.skipped:
            self._rows.setdefault((what, must), [0, 0])
            return
        count = sum(int(str(value)) for name, value in report.user_properties if name == "injected")
        row = self._rows.setdefault((what, must), [0, 0])
        row[0] += count or 1
        row[1] += report.failed

    def pytest_sessionfinish(self) -> None:
        if self._config.getoption("--write-reliability") and self._rows:
            path = Path(str(self._config.rootpath)) / "docs" / "reliability.md"
            path.parent.mkdir(exist_ok=True)
            path.write_text(_page(self._rows, self._config), encoding="utf-8")


def _page(rows: _Rows, config: pytest.Config) -> str:
    moments, cases = config.getoption("--fault-moments"), config.getoption("--fuzz-cases")
    lines = [
        f"| {what} | {must} | {count} | {lost} | {'✗ fails' if lost else '✓ holds' if count else '– skipped there'} |"
        for (what, must), (count, lost) in sorted(rows.items())
    ]
    total, lost = sum(row[0] for row in rows.values()), sum(row[1] for row in rows.values())
    return (
        "# Faults injected by the test suite\n\n"
        "Written by the test run itself; do not edit. The command:\n\n"
        f"    python -m pytest -m faults --fault-moments {moments} --fuzz-cases {cases} --write-reliability\n\n"
        f"{total} faults injected, {lost} checks failed. *Lost* counts tests in which work was lost, a wrong number "
        "was kept, or the message was not the promised one.\n\n" + COLUMNS + "\n".join(lines) + "\n"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the summary where the reports arrive."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Summary(session.config))
