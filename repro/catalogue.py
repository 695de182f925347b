"""The tables and figures of the project: one notebook each, one id everywhere."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from repro.project import UserError, project_root, reports_root
from repro.vocabulary import Paper, Preset

Choice = TypeVar("Choice", bound=str)
PRESETS: tuple[Preset, ...] = get_args(Preset)
PAPERS: tuple[Paper, ...] = get_args(Paper)
PAPER_NAMES: dict[Paper, str] = {"ega": "EGA", "dfg": "DFG", "scorecampp": "ScoreCAM++"}
PAPER_TITLES: dict[Paper, str] = {
    "ega": "Entropy Guided Adversarial Model for Weakly Supervised Object Localization",
    "dfg": "Discriminative feature generation for classification of imbalanced data",
    "scorecampp": "Reliable or Deceptive? Investigating Gated Features for Smooth Visual Explanations",
}
TRIALS = "trial"
"""Folder below `reports/` of runs whose parameters are not exactly a preset's."""


def nearest(given: str, allowed: Sequence[str]) -> str:
    """A hint naming the closest allowed value, or all of them where none is close."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"allowed: {', '.join(allowed) or 'nothing'}"


def one_of(what: str, given: str, allowed: Sequence[Choice]) -> Choice:
    """`given`, where it is allowed.

    Raises:
        UserError: it is not; the message gives the nearest one and all of them.
    """
    for choice in allowed:
        if choice == given:
            return choice
    hint = nearest(given, allowed)
    every = f" (allowed: {', '.join(allowed)})" if "did you mean" in hint else ""
    raise UserError(f"{what} {given[:80]}: {hint}{every}")


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook, as far as this package looks at it."""

    cell_type: str
    source: str
    tags: tuple[str, ...]
    output: str = ""
    """What it printed when it was stored; only the cell tagged `check` keeps any."""


@dataclass(frozen=True)
class Notebook:
    """Title and cells; read without nbformat, whose import alone costs seconds in every command."""

    title: str
    cells: tuple[Cell, ...]

    @property
    def code(self) -> list[str]:
        """Sources of the code cells."""
        return [cell.source for cell in self.cells if cell.cell_type == "code"]

    @property
    def pinned(self) -> str:
        """The smoke run's main numbers, as stored under the cell tagged `check`."""
        return "".join(cell.output for cell in self.cells if "check" in cell.tags).strip()


def _printed(cell: Mapping[str, Any]) -> str:
    return "".join("".join(output.get("text", ())) for output in cell.get("outputs", ()))


@dataclass(frozen=True, order=True)
class Table:
    """One table or figure of a paper, e.g. id `ega/table1_cub`."""

    id: str

    @property
    def paper(self) -> Paper:
        """`ega`, `dfg` or `scorecampp`."""
        return one_of("paper", self.id.split("/")[0], PAPERS)

    @property
    def notebook(self) -> Path:
        """The committed, stripped notebook."""
        return project_root() / "notebooks" / f"{self.id}.ipynb"

    def parameter_file(self, preset: Preset) -> Path | None:
        """The YAML file of a preset; None for smoke, whose values are the notebook's own defaults."""
        return None if preset == "smoke" else project_root() / "params" / preset / f"{self.id}.yaml"

    def report(self, preset: Preset, trial: bool = False) -> Path:
        """Folder of the executed notebook, HTML, figures and record; a trial's lies apart."""
        return reports_root() / (TRIALS if trial else "") / preset / self.id

    def read(self) -> Notebook:
        """Title and cells of the committed notebook.

        Raises:
            UserError: there is no such notebook, or it is not valid.
        """
        try:
            content = json.loads(self.notebook.read_text(encoding="utf-8"))
            cells = tuple(
                Cell(
                    cell["cell_type"], "".join(cell["source"]), tuple(cell["metadata"].get("tags", ())), _printed(cell)
                )
                for cell in content["cells"]
            )
            return Notebook(str(content["metadata"].get("title", self.id)), cells)
        except FileNotFoundError:
            ids = [table.id for table in all_tables()]
            raise UserError(f"no table '{self.id}': {nearest(self.id, ids)}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"notebook {self.notebook.name} cannot be read: {type(error).__name__}: {error}") from None

    @property
    def title(self) -> str:
        """Title from the notebook's metadata."""
        return self.read().title


def _order(table: Table) -> tuple[int, list[tuple[int, str]]]:
    digits_first = [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in "".join(c if c.isdigit() else f"|{c}|" for c in table.id).split("|")
        if part
    ]
    return PAPERS.index(table.paper), digits_first


def all_tables() -> list[Table]:
    """Every notebook of the project, paper by paper, tables and figures in natural order."""
    folder = project_root() / "notebooks"
    found = [Table(path.relative_to(folder).with_suffix("").as_posix()) for path in folder.glob("*/*.ipynb")]
    return sorted((table for table in found if table.id.split("/")[0] in PAPERS), key=_order)


def select(names: Sequence[str]) -> list[Table]:
    """Tables named by id (`ega/table1_cub`) or by paper (`ega`); no name means all.

    Raises:
        UserError: a name is neither; the message gives the nearest one.
    """
    tables = all_tables()
    chosen: list[Table] = []
    for name in names:
        matching = [table for table in tables if name in (table.id, table.paper)]
        if not matching:
            known = [*PAPERS, *(table.id for table in tables)]
            raise UserError(f"no table or paper '{name}': {nearest(name, known)}")
        chosen += [table for table in matching if table not in chosen]
    return chosen if names else tables
