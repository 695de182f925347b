"""The numbers the three papers print, as data: `published/<paper>.yaml`, one entry per table or figure.

Every number keeps the digits it was printed with, so that its rounding interval is known; every known slip of
a paper stands beside the table it concerns and is never corrected silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from repro.catalogue import PAPERS
from repro.vocabulary import Paper, cam_method_labels

# What a table cell is called: the address that published numbers, claims and result rows share.

SettingValue = str | int | float | bool


@dataclass(frozen=True, order=True)
class CellAddress:
    """One cell of one table: (table, method, metric, setting).

    `setting` holds the axes that vary inside the table, sorted by name, so that equal cells are equal keys.
    """

    table: str
    method: str
    metric: str
    setting: tuple[tuple[str, SettingValue], ...] = ()

    @classmethod
    def of(cls, table: str, method: str, metric: str, setting: Mapping[str, SettingValue] | None = None) -> Self:
        """Build an address from a mapping of the varying axes."""
        return cls(table, method, metric, tuple(sorted((setting or {}).items())))

    def under(self, axes: Mapping[str, SettingValue]) -> Self:
        """The same cell with further axes in its setting."""
        return self.of(self.table, self.method, self.metric, {**dict(self.setting), **axes})

    def __str__(self) -> str:
        axes = "".join(f", {name}={value}" for name, value in self.setting)
        return f"{self.table}[{self.method}, {self.metric}{axes}]"


# Names of methods and controls in tables that do not print them.

OWN_METHODS = {
    "whole_transfer": "Whole transfer (control)",
    "reweighting": "Re-weighting (control)",
    "class_balanced": "Class-balanced loss (control)",
    **cam_method_labels(),
    "centre_gaussian": "Centre Gaussian, sees no image (control)",
    "scorecam_area_matched": "Score-CAM at ScoreCAM++'s area (control)",
    "scorecampp_area_matched": "ScoreCAM++ at Score-CAM's area (control)",
    "gradcam_area_matched": "Grad-CAM at ScoreCAM++'s area (control)",
    "gradcampp_area_matched": "Grad-CAM++ at ScoreCAM++'s area (control)",
    "xgradcam_area_matched": "XGrad-CAM at ScoreCAM++'s area (control)",
    "layercam_area_matched": "LayerCAM at ScoreCAM++'s area (control)",
    "auggradcampp_area_matched": "Augmented Grad-CAM++ at ScoreCAM++'s area (control)",
    "noise": "Noise, sees no image (control)",
    "scorecam_eq5": "Score-CAM, eq. 5 literal",
    "scorecampp_eq10": "ScoreCAM++, eq. 10 literal",
    "scorecampp_mask_only": "ScoreCAM++, tanh on mask only",
}


def own_label(method: str) -> str:
    """The label of a method id that its table does not print."""
    return OWN_METHODS.get(method, method.replace("_", " "))


StrictSetting = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]
TableId = Annotated[str, Field(pattern=r"^(ega|dfg|scorecampp)/[a-z0-9_]+$")]


class StrictModel(BaseModel):
    """A frozen record that refuses unknown keys, so that a misspelt key cannot pass as data."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(StrictModel):
    """A column of numbers: what it is called, its unit, and which direction is better.

    `better` is "neither" for plain counts and settings, on which no ordering is claimed. `matters` is the smallest
    difference worth calling better or worse, in the metric's unit (`docs/statistics.md` says why).
    """

    label: str
    unit: str = ""
    better: Literal["lower", "higher", "neither"]
    matters: Annotated[float, Field(ge=0)] = 0.0
    description: str = ""


class PublishedCell(StrictModel):
    """One printed number; `spread` is the ± printed beside it (a standard deviation in all three papers)."""

    method: str
    metric: str
    printed: str
    value: float
    setting: StrictSetting = {}
    spread: float | None = None
    where: str = ""

    @model_validator(mode="after")
    def _value_is_what_is_printed(self) -> Self:
        if Decimal(str(self.value)) != _decimal(self.printed):
            raise ValueError(f"value {self.value} is not the printed {self.printed!r}; write what is printed")
        return self


class NotPrinted(StrictModel):
    """Cells of the method × metric × setting grid the paper leaves empty; an omitted key matches everything.

    `why` is "dash" (the cell is there and holds a dash), "no row", "no column", "plot only" (drawn, without
    numbers) or "ours" (a quantity a sentence asserts and no table gives).
    """

    why: Literal["dash", "no row", "no column", "plot only", "ours"]
    method: str | None = None
    metric: str | None = None
    setting: StrictSetting = {}

    def matches(self, address: CellAddress) -> bool:
        """Whether `address` is one of these empty cells."""
        axes = dict(address.setting)
        return (
            self.method in (None, address.method)
            and self.metric in (None, address.metric)
            and all(axes.get(name) == value for name, value in self.setting.items())
        )


class Slip(StrictModel):
    """A mistake in the paper: what is printed, what it must be (or "unknown"), and how one can tell."""

    where: str
    printed: str
    should_be: str
    why: str


class PublishedTable(StrictModel):
    """A table or figure of a paper: what was run (`setup`), its axes and its printed cells.

    `settings` lists the combinations of varying axes that occur, in printed order; [{}] means none vary.
    """

    id: TableId
    title: str
    source: str
    setup: dict[str, Any] = {}
    metrics: dict[str, Metric]
    methods: dict[str, str]
    settings: list[StrictSetting] = [{}]
    cells: list[PublishedCell] = []
    not_printed: list[NotPrinted] = []
    slips: list[Slip] = []

    @model_validator(mode="after")
    def _cells_lie_on_the_grid_once(self) -> Self:
        grid = set(self.grid())
        seen: set[CellAddress] = set()
        for address in map(self.address, self.cells):
            if address not in grid:
                raise ValueError(f"{address} is outside the methods, metrics and settings of its table")
            if address in seen:
                raise ValueError(f"{address} is given twice; keep the printed one")
            seen.add(address)
        return self

    def address(self, cell: PublishedCell) -> CellAddress:
        """The cell's address."""
        return CellAddress.of(self.id, cell.method, cell.metric, cell.setting)

    def grid(self) -> Iterator[CellAddress]:
        """Every method × metric × setting of the table, printed or not."""
        for method, metric, setting in product(self.methods, self.metrics, self.settings):
            yield CellAddress.of(self.id, method, metric, setting)

    def cell(self, method: str, metric: str, setting: dict[str, SettingValue] | None = None) -> PublishedCell | None:
        """The printed cell, or None where nothing is printed."""
        wanted = CellAddress.of(self.id, method, metric, setting)
        return next((c for c in self.cells if self.address(c) == wanted), None)


class _PaperFile(StrictModel):
    paper: Paper
    tables: list[PublishedTable]

    @model_validator(mode="after")
    def _ids_belong_to_the_paper_once(self) -> Self:
        ids = [table.id for table in self.tables]
        foreign = [i for i in ids if not i.startswith(f"{self.paper}/")]
        if foreign or len(set(ids)) != len(ids):
            raise ValueError(f"table ids must start with {self.paper}/ and occur once, got {ids}")
        return self


@cache
def load_published(paper: Paper) -> list[PublishedTable]:
    """All tables of one paper, in printed order.

    Raises:
        ValueError: for an unknown paper, or a file that breaks the format (pydantic names the place).
    """
    if paper not in PAPERS:
        raise ValueError(f"paper must be one of {', '.join(PAPERS)}, got {paper!r}")
    text = files("repro.evidence").joinpath("published", f"{paper}.yaml").read_text(encoding="utf-8")
    return _PaperFile.model_validate(yaml.safe_load(text)).tables


def published_table(table_id: str) -> PublishedTable:
    """The table with this id, e.g. "ega/table1_cub".

    Raises:
        ValueError: if no paper has it; the message lists the ids of that paper.
    """
    paper = table_id.split("/")[0]
    known = {table.id: table for name in PAPERS if name == paper for table in load_published(name)}
    if table_id not in known:
        choices = ", ".join(known) or ", ".join(f"{name}/…" for name in PAPERS)
        raise ValueError(f"no published table {table_id!r}; choose one of {choices}")
    return known[table_id]


def find_table(table_id: str) -> PublishedTable | None:
    """The published table of an id; None for a figure without printed numbers."""
    try:
        return published_table(table_id)
    except ValueError:
        return None


def find_metric(address: CellAddress) -> Metric:
    """The column an address lies in; our own metrics go by their id."""
    table = find_table(address.table)
    own = Metric(label=address.metric.replace("_", " "), better="neither")
    return table.metrics.get(address.metric, own) if table else own


@cache
def smallest_effect(metric: str) -> float:
    """The smallest difference that matters in a metric, in its unit; 0 for one that no table orders by."""
    tables = (table for paper in PAPERS for table in load_published(paper))
    return max((table.metrics[metric].matters for table in tables if metric in table.metrics), default=0.0)


def rounding_interval(printed: str) -> tuple[float, float]:
    """All values that round to the printed digits: "46.3" means 46.25 to 46.35, both ends included.

    Raises:
        ValueError: if `printed` is not a plain decimal number.
    """
    number = _decimal(printed)
    exponent = number.as_tuple().exponent
    half = Decimal(5).scaleb(int(exponent) - 1)
    return float(number - half), float(number + half)


def _decimal(printed: str) -> Decimal:
    try:
        number = Decimal(printed)
    except InvalidOperation:
        raise ValueError(f"printed must be a plain decimal number such as '46.3', got {printed!r}") from None
    if not number.is_finite():
        raise ValueError(f"printed must be finite, got {printed!r}; list the cell under not_printed")
    return number
