"""The papers' measurable claims as data: `claims/<paper>.yaml`, each a conjunction of requirements on cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from itertools import pairwise, product
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from repro.catalogue import PAPERS
from repro.evidence.decisions import Region
from repro.evidence.published import (
    CellAddress,
    SettingValue,
    StrictModel,
    StrictSetting,
    TableId,
    rounding_interval,
    smallest_effect,
)
from repro.vocabulary import Paper

Direction = Literal["lower", "higher"]
Metrics = Annotated[dict[str, Direction], Field(min_length=1)]
Settings = Annotated[list[StrictSetting], Field(min_length=1)]

_TOUCH = 1e-9  # sums of two-decimal numbers in binary floating point; far below any printed digit


@dataclass(frozen=True)
class Exceeds:
    """`better` is better than `worse` by more than `margin` (in the metric's unit)."""

    better: CellAddress
    worse: CellAddress
    direction: Direction
    margin: float = 0.0

    @property
    def cells(self) -> tuple[CellAddress, ...]:
        """The cells whose difference, first minus second, is the advantage of `better`."""
        return (self.worse, self.better) if self.direction == "lower" else (self.better, self.worse)

    @property
    def region(self) -> Region:
        """Above the margin; without one, by at least the smallest effect that matters in this metric."""
        return Region(self.margin, matters=0.0 if self.margin else smallest_effect(self.better.metric))


@dataclass(frozen=True)
class Equals:
    """`cell`, or `cell` minus `minus`, has the value the text quotes."""

    cell: CellAddress
    minus: CellAddress | None
    quoted: str
    tolerance: float

    @property
    def cells(self) -> tuple[CellAddress, ...]:
        """The cell, or the two whose difference is quoted."""
        return (self.cell,) if self.minus is None else (self.cell, self.minus)

    @property
    def region(self) -> Region:
        """Quoted ± (rounding + tolerance)."""
        low, high = rounding_interval(self.quoted)
        return Region(low - self.tolerance - _TOUCH, high + self.tolerance + _TOUCH)


Requirement = Exceeds | Equals


def under(requirement: Requirement, axes: Mapping[str, SettingValue]) -> Requirement:
    """The same requirement on the cells of another reading, which its setting names."""
    if isinstance(requirement, Exceeds):
        return replace(requirement, better=requirement.better.under(axes), worse=requirement.worse.under(axes))
    minus = requirement.minus and requirement.minus.under(axes)
    return replace(requirement, cell=requirement.cell.under(axes), minus=minus)


def direction_of(requirement: Requirement) -> Exceeds | None:
    """The ordering inside a requirement: its own, or "ahead at all" for a gap quoted as positive."""
    if isinstance(requirement, Exceeds):
        return requirement
    if requirement.minus is None or float(requirement.quoted) <= 0:
        return None
    # `Equals` already carries the sign of the metric: its first cell is the larger one where the claim holds.
    return Exceeds(requirement.cell, requirement.minus, "higher")


class RowReference(StrictModel):
    """A row of a table; `setting` and `table` override those of the test. A plain string is a method id."""

    method: str
    setting: StrictSetting = {}
    table: TableId | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_method_id(cls, data: Any) -> Any:
        return {"method": data} if isinstance(data, str) else data

    def at(self, table: str, metric: str, setting: StrictSetting) -> CellAddress:
        """The row's cell."""
        return CellAddress.of(self.table or table, self.method, metric, {**setting, **self.setting})


class Test(StrictModel):
    """What a claim demands of the numbers of a table."""

    @abstractmethod
    def requirements(self, table: str) -> Iterator[Requirement]:
        """Everything that must hold."""


class OrderingTest(Test):
    """`better` beats every row of `than` by more than `margin`, on all metrics in all settings.

    `metrics` maps a metric id to the direction that is better.
    """

    metrics: Metrics
    better: RowReference
    than: Annotated[list[RowReference], Field(min_length=1)]
    settings: Settings = [{}]
    margin: float = 0.0

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per metric, setting and rival."""
        for (metric, direction), setting, rival in product(self.metrics.items(), self.settings, self.than):
            better, worse = self.better.at(table, metric, setting), rival.at(table, metric, setting)
            yield Exceeds(better, worse, direction, self.margin)


class RankTest(Test):
    """`method` comes right after the rows of `behind` and before those of `ahead_of`."""

    metrics: Metrics
    method: RowReference
    rank: int
    behind: list[RowReference] = []
    ahead_of: list[RowReference] = []
    settings: Settings = [{}]

    @model_validator(mode="after")
    def _rank_counts_those_in_front(self) -> RankTest:
        if self.rank != len(self.behind) + 1:
            raise ValueError(f"rank must be len(behind) + 1 = {len(self.behind) + 1}, got {self.rank}")
        return self

    def requirements(self, table: str) -> Iterator[Requirement]:
        """Everyone in `behind` beats the method, the method beats everyone in `ahead_of`."""
        for (metric, direction), setting in product(self.metrics.items(), self.settings):
            own = self.method.at(table, metric, setting)
            for winner in self.behind:
                yield Exceeds(winner.at(table, metric, setting), own, direction)
            for loser in self.ahead_of:
                yield Exceeds(own, loser.at(table, metric, setting), direction)


class ValueTest(Test):
    """A cell has the value quoted in the text; `tolerance` is what a reproduction may miss it by."""

    metric: str
    method: RowReference
    setting: StrictSetting = {}
    quoted: str
    tolerance: float

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One equality."""
        yield Equals(self.method.at(table, self.metric, self.setting), None, self.quoted, self.tolerance)


class GapTest(Test):
    """`better` is ahead of `than` by the quoted amount (positive in the better direction)."""

    metric: str
    direction: Direction
    better: RowReference
    than: RowReference
    setting: StrictSetting = {}
    quoted: str
    tolerance: float

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One equality of a difference."""
        better = self.better.at(table, self.metric, self.setting)
        worse = self.than.at(table, self.metric, self.setting)
        first, second = (worse, better) if self.direction == "lower" else (better, worse)
        yield Equals(first, second, self.quoted, self.tolerance)


class TrendTest(Test):
    """A metric strictly rises or falls along the ordered settings `along`, within each of `settings`."""

    metrics: dict[str, Literal["increasing", "decreasing"]]
    method: RowReference
    along: Annotated[list[StrictSetting], Field(min_length=2)]
    settings: Settings = [{}]

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per step."""
        for (metric, trend), setting in product(self.metrics.items(), self.settings):
            steps = [self.method.at(table, metric, {**setting, **step}) for step in self.along]
            for earlier, later in pairwise(steps):
                yield Exceeds(later, earlier, "higher" if trend == "increasing" else "lower")


class BestSettingTest(Test):
    """The setting `best` beats the settings `among`, for one method, within each of `settings`."""

    metrics: Metrics
    method: RowReference
    best: StrictSetting
    among: Settings
    settings: Settings = [{}]

    @model_validator(mode="after")
    def _best_is_not_its_own_rival(self) -> BestSettingTest:
        if self.best in self.among:
            raise ValueError(f"among lists the rivals of {self.best}; leave the best setting itself out")
        return self

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per metric, outer setting and rival setting."""
        for (metric, direction), setting in product(self.metrics.items(), self.settings):
            best = self.method.at(table, metric, {**setting, **self.best})
            for rival in self.among:
                yield Exceeds(best, self.method.at(table, metric, {**setting, **rival}), direction)


_TESTS: dict[str, type[Test]] = {
    "ordering": OrderingTest,
    "value": ValueTest,
    "gap": GapTest,
    "trend": TrendTest,
    "best_setting": BestSettingTest,
    "rank": RankTest,
}


class Claim(StrictModel):
    """A sentence of a paper that asserts something measurable.

    `kind` names the form of `test`. `about` says what it is true of: a `training` method, on which one trained network
    cannot decide, or a given `network`. `published_supports` says what the paper's own printed numbers make of it:
    True, False (then `why`), or None where the needed numbers are not all printed (then `why`). `also` names the places
    that repeat it.
    """

    id: Annotated[str, Field(pattern=r"^(ega|dfg|scorecampp)\.c\d\d[a-z]?$")]
    quote: str
    place: str
    also: list[str] = []
    table: TableId | Annotated[list[TableId], Field(min_length=1)]
    about: Literal["training", "network"]
    kind: str
    test: Test
    published_supports: bool | None = True
    why: str = ""

    @model_validator(mode="before")
    @classmethod
    def _test_of_the_kind(cls, data: Any) -> Any:
        kind = data.get("kind")
        if kind not in _TESTS:
            raise ValueError(f"kind must be one of {', '.join(_TESTS)}, got {kind!r}")
        return {**data, "test": _TESTS[kind].model_validate(data.get("test"))}

    @model_validator(mode="after")
    def _short_and_explained(self) -> Claim:
        if len(self.quote.split()) > 25:
            raise ValueError(f"{self.id}: quote at most 25 words, got {len(self.quote.split())}")
        if self.published_supports is not True and not self.why:
            raise ValueError(f"{self.id}: say why the published numbers do not support it")
        return self

    @property
    def tables(self) -> list[str]:
        """Ids of the tables the claim is about."""
        return [self.table] if isinstance(self.table, str) else list(self.table)

    @cached_property
    def requirements(self) -> tuple[Requirement, ...]:
        """Everything that must hold for the claim to hold, each comparison once."""
        return tuple(dict.fromkeys(part for table in self.tables for part in self.test.requirements(table)))

    def cells(self) -> frozenset[CellAddress]:
        """The cells on which the verdict depends."""
        return frozenset(cell for requirement in self.requirements for cell in requirement.cells)


class NotEncoded(StrictModel):
    """A sentence that sounds like a claim and is not tested, with the reason."""

    quote: str
    place: str
    why: str


class PaperClaims(StrictModel):
    """All claims of one paper, and the sentences left out on purpose; `about` is that of claims without their own."""

    paper: Paper
    about: Literal["training", "network"]
    claims: list[Claim]
    not_encoded: list[NotEncoded] = []

    @model_validator(mode="before")
    @classmethod
    def _hand_down_the_subject(cls, data: Any) -> Any:
        return {**data, "claims": [{"about": data.get("about"), **claim} for claim in data["claims"]]}

    @model_validator(mode="after")
    def _ids_belong_to_the_paper_once(self) -> PaperClaims:
        ids = [claim.id for claim in self.claims]
        if len(set(ids)) != len(ids) or any(not i.startswith(f"{self.paper}.") for i in ids):
            raise ValueError(f"claim ids must start with {self.paper}. and occur once, got {ids}")
        return self


@cache
def load_paper_claims(paper: Paper) -> PaperClaims:
    """Claims and deliberate omissions of one paper.

    Raises:
        ValueError: for an unknown paper, or a file that breaks the format (pydantic names the place).
    """
    if paper not in PAPERS:
        raise ValueError(f"paper must be one of {', '.join(PAPERS)}, got {paper!r}")
    text = files("repro.evidence").joinpath("claims", f"{paper}.yaml").read_text(encoding="utf-8")
    return PaperClaims.model_validate(yaml.safe_load(text))


def load_claims(paper: Paper) -> list[Claim]:
    """The claims of one paper, in the paper's order."""
    return load_paper_claims(paper).claims


def claims_for(table_id: str) -> list[Claim]:
    """The claims that rest on at least one cell of this table."""
    claims = [claim for paper in PAPERS for claim in load_claims(paper)]
    return [claim for claim in claims if any(cell.table == table_id for cell in claim.cells())]
