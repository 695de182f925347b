"""Mutated parameter files and command lines: a valid run, or one clear message; never a traceback, never a kernel."""

import random
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from repro.catalogue import Table
from repro.cli import app
from repro.parameters import preset_values
from repro.project import UserError

Project = Callable[[str, str], Path]
GOOD = {"preset": "quick", "images": 50, "rate": 0.1, "method": "label", "seeds": [0, 1]}
VALUES = [
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "50",
    "1e-4",
    "ü\u202e",
    "\0",
    "a" * 5000,
    [],
    [[]],
    {},
    {"a": [1]},
    [1, "x", None],
    "!!python/object/apply:os.system ['true']",
    "${HOME}",
    "{{}}",
    "2026-11-21",
    "0x10",
    "on",
    "~",
]
SNIPPETS = [
    "\t",
    "\0",
    ": ",
    "- ",
    "{",
    "[",
    "&a",
    "*a",
    "<<: *a",
    "!!python/name:os.system",
    "!!binary x",
    "%YAML 9",
    "---",
    "'",
    "\x85",
    "\ufeff",
    "!!timestamp 1",
    "? ",
    "|",
    ">",
    "&x [*x]",
    "2026-13-45",
    "1_000",
    "0o9",
    ".inf",
    "=",
    "!<",
    "%",
]
WORDS = [
    "run",
    "list",
    "runs",
    "data",
    "report",
    "show",
    "rm",
    "gc",
    "check",
    "ega",
    "ega/table1",
    "ega/table9",
    "dfg",
    "--preset",
    "quick",
    "paper",
    "smoke",
    "quik",
    "-p",
    "--set",
    "images=3",
    "images=0",
    "images",
    "=",
    "rate=nan",
    "seeds=[0",
    "--jobs",
    "-j",
    "0",
    "-1",
    "99999999999999999999",
    "x",
    "--force",
    "--help",
    "--nonsense",
    "",
    "é",
    "../..",
    "/etc/passwd",
    "a" * 3000,
    "method=label",
    "preset=paper",
    "--set=images=-5",
    "images={a: 1}",
    "images=!!python/name:os.system",
    "prepare",
    "--from",
]


def mutated_file(chance: random.Random) -> bytes:
    """A good parameter file with a few things wrong: values, names, then characters or bytes."""
    values: dict[object, object] = dict(GOOD)
    for _ in range(chance.randint(0, 2)):
        name = chance.choice(list(GOOD))
        action = chance.randrange(4)
        if action == 0:
            values[name] = chance.choice(VALUES)
        elif action == 1:
            values.pop(name, None)
        elif action == 2:
            values[chance.choice([name.upper(), name[:-1], 3, None, "__class__", "model_config", "x" * 999])] = 1
    text = yaml.safe_dump(values, allow_unicode=True)
    for _ in range(chance.randint(0, 3)):
        place = chance.randrange(len(text) + 1)
        cut = chance.randrange(4)
        text = text[:place] + chance.choice([*SNIPPETS, chance.choice(string.printable)]) + text[place + cut :]
    content = text.encode("utf-8", "surrogatepass")
    if chance.random() < 0.2:
        place = chance.randrange(len(content) + 1)
        content = content[:place] + chance.randbytes(chance.randint(1, 4)) + content[place:]
    return content[: chance.randrange(len(content) + 1)] if chance.random() < 0.1 else content


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every batch run that got past the checks; none is carried out."""
    started: list[list[str]] = []

    def run_and_report(jobs: list, *_: object) -> int:
        started.append([job.parameters_hash + job.to_json() for job in jobs])
        return 0

    monkeypatch.setattr("repro.batch.runner.run_and_report", run_and_report)
    return started


@pytest.mark.faults("mutated parameter file", "valid values or one message; no traceback, no kernel")
def test_parameter_files(
    project: Project, tmp_path: Path, request: pytest.FixtureRequest, chance: random.Random,
    kernels: list, injected: Callable[[int], None],
) -> None:  # fmt: skip
    project("ega/table1", "")
    path = tmp_path / "params" / "quick" / "ega" / "table1.yaml"
    path.parent.mkdir(parents=True)
    cases, refused = request.config.getoption("--fuzz-cases") // 2, 0
    for _ in range(cases):
        content = mutated_file(chance)
        path.write_bytes(content)
        before = len(kernels)
        result = CliRunner().invoke(app, ["run", "--preset", "quick"])
        if result.exit_code == 0:
            assert preset_values(Table("ega/table1"), "quick")["images"] > 0
        else:
            assert isinstance(result.exception, UserError), (content, result.exception)
            assert len(kernels) == before, content
            assert "table1.yaml" in str(result.exception) and len(str(result.exception)) < 20_000
            refused += 1
    assert 0.3 * cases < refused < cases, "the mutator is too wild or too tame to prove anything"
    injected(cases)


@pytest.mark.faults("mutated command line", "runs, or status 2 with a message; no traceback, no kernel")
def test_command_lines(
    project: Project, tmp_path: Path, request: pytest.FixtureRequest, chance: random.Random,
    monkeypatch: pytest.MonkeyPatch, kernels: list, injected: Callable[[int], None],
) -> None:  # fmt: skip
    project("ega/table1", "")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "runs"))
    cases, refused = request.config.getoption("--fuzz-cases") // 2, 0
    tried = 0
    while tried < cases:
        given = [chance.choice(WORDS) for _ in range(chance.randint(0, 6))]
        arguments = ["run", *given] if chance.random() < 0.6 else given
        if chance.random() < 0.3 and arguments:
            place = chance.randrange(len(arguments))
            word = arguments[place]
            arguments[place] = word[: chance.randrange(len(word) + 1)] + chance.choice(string.printable)
        if arguments[:2] == ["data", "prepare"]:
            continue  # may download
        tried += 1
        before = len(kernels)
        result = CliRunner().invoke(app, arguments)
        fine = result.exception is None or isinstance(result.exception, UserError | SystemExit)
        assert fine, (arguments, result.exception)
        if isinstance(result.exception, UserError) or result.exit_code == 2:
            assert len(kernels) == before, arguments
            refused += 1
    assert 0.3 * cases < refused < cases
    injected(cases)
