"""`docs/equations.md` lists every number of the papers and names functions that exist."""

import importlib
import re
from functools import reduce

from repro.project import code_root

NUMBERS = {
    "EGA": {f"eq. {n}" for n in range(1, 9)},
    "DFG": {f"eq. {n}" for n in (*range(1, 10), "4a", "4b", "4c")}
    | {f"line {n}" for n in range(1, 26)}
    | {f"Table A.{n}" for n in range(3, 9)},
    "ScoreCAM++": {f"eq. {n}" for n in range(1, 15)},
}


def test_every_number_has_a_function_that_exists() -> None:
    page = (code_root() / "docs" / "equations.md").read_text(encoding="utf-8")
    sections = {part.split()[0]: part for part in page.split("\n## ")[1:]}
    assert sections.keys() == NUMBERS.keys()
    for paper, numbers in NUMBERS.items():
        rows = [line.split(" | ") for line in sections[paper].splitlines() if re.match(r"\| (eq\.|line|Table) ", line)]
        assert [row[0].removeprefix("| ") for row in rows] == sorted({row[0][2:] for row in rows}, key=_place)
        assert {row[0][2:] for row in rows} == numbers, paper
        for number, _, functions in rows:
            named = re.findall(r"\[`([\w.]+)`\]\(\.\./([\w/]+)\.py\)", functions)
            assert named, number
            for name, path in named:
                module = importlib.import_module(path.replace("/", "."))
                found = reduce(getattr, name.split("."), module)
                assert found.__module__ == module.__name__, f"{paper}, {number}: {name} is defined elsewhere"


def _place(number: str) -> tuple[int, int, str]:
    kind, digits, letter = re.fullmatch(r"(eq\.|line|Table A\.) ?(\d+)(\w?)", number).groups()  # type: ignore[union-attr]
    return ["eq.", "line", "Table A."].index(kind), int(digits), letter


def test_a_table_is_followed_through_at_most_fourteen_files_that_exist() -> None:
    page = (code_root() / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## From a notebook to the number in its record\n")[1].split("\n## ")[0]
    tables = section.split("\n**")[1:]
    assert [table.split(",")[0] for table in tables] == list(NUMBERS)
    for table in tables:
        files = re.findall(r"^\d+\. `(.+)`$", table, flags=re.MULTILINE)
        assert 3 <= len(files) <= 14
        assert files[0].startswith("notebooks/")
        assert not [file for file in files if not (code_root() / file).exists()]
