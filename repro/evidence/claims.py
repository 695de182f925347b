"""The papers' measurable claims as data: `claims/<paper>.yaml`, evaluated against any set of numbers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib.resources import files
from itertools import pairwise, product
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from repro.evidence.intervals import Estimate
from repro.evidence.published import (
    PAPERS,
    CellAddress,
    Paper,
    Setting,
    SettingValue,
    StrictModel,
    TableId,
    load_published,
)
from repro.evidence.requirements import (
    ClaimOutcome,
    Direction,
    Equals,
    Evidence,
    Exceeds,
    Lookup,
    PairedDifference,
    Requirement,
    judge_all,
)

Metrics = Annotated[dict[str, Direction], Field(min_length=1)]
Settings = Annotated[list[Setting], Field(min_length=1)]


class Subject(StrictModel):
    """A row of a table; `setting` and `table` override those of the test. A plain string is a method id."""

    method: str
    setting: Setting = {}
    table: TableId | None = None

    @model_validator(mode="before")
    @classmethod
    def _accept_method_id(cls, data: Any) -> Any:
        return {"method": data} if isinstance(data, str) else data

    def at(self, table: str, metric: str, setting: Setting) -> CellAddress:
        """The subject's cell."""
        return CellAddress.of(self.table or table, self.method, metric, {**setting, **self.setting})


class OrderingTest(StrictModel):
    """`better` beats every row of `than` by more than `margin`, on all metrics in all settings.

    `metrics` maps a metric id to the direction that is better.
    """

    metrics: Metrics
    better: Subject
    than: Annotated[list[Subject], Field(min_length=1)]
    settings: Settings = [{}]
    margin: float = 0.0

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per metric, setting and rival."""
        for (metric, direction), setting, rival in product(self.metrics.items(), self.settings, self.than):
            better, worse = self.better.at(table, metric, setting), rival.at(table, metric, setting)
            yield Exceeds(better, worse, direction, self.margin)


class RankTest(StrictModel):
    """`method` comes right after the rows of `behind` and before those of `ahead_of`."""

    metrics: Metrics
    method: Subject
    rank: int
    behind: list[Subject] = []
    ahead_of: list[Subject] = []
    settings: Settings = [{}]

    @model_validator(mode="after")
    def _rank_counts_those_in_front(self) -> Self:
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


class ValueTest(StrictModel):
    """A cell has the value quoted in the text; `tolerance` is what a reproduction may miss it by."""

    metric: str
    method: Subject
    setting: Setting = {}
    quoted: str
    tolerance: float

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One equality."""
        yield Equals(self.method.at(table, self.metric, self.setting), None, self.quoted, self.tolerance)


class GapTest(StrictModel):
    """`better` is ahead of `than` by the quoted amount (positive in the better direction)."""

    metric: str
    direction: Direction
    better: Subject
    than: Subject
    setting: Setting = {}
    quoted: str
    tolerance: float

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One equality of a difference."""
        better = self.better.at(table, self.metric, self.setting)
        worse = self.than.at(table, self.metric, self.setting)
        first, second = (worse, better) if self.direction == "lower" else (better, worse)
        yield Equals(first, second, self.quoted, self.tolerance)


class TrendTest(StrictModel):
    """A metric strictly rises or falls along the ordered settings `along`, within each of `settings`."""

    metrics: dict[str, Literal["increasing", "decreasing"]]
    method: Subject
    along: Annotated[list[Setting], Field(min_length=2)]
    settings: Settings = [{}]

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per step."""
        for (metric, trend), setting in product(self.metrics.items(), self.settings):
            steps = [self.method.at(table, metric, {**setting, **step}) for step in self.along]
            for earlier, later in pairwise(steps):
                yield Exceeds(later, earlier, "higher" if trend == "increasing" else "lower")


class BestSettingTest(StrictModel):
    """The setting `best` beats the settings `among`, for one method, within each of `settings`."""

    metrics: Metrics
    method: Subject
    best: Setting
    among: Settings
    settings: Settings = [{}]

    @model_validator(mode="after")
    def _best_is_not_its_own_rival(self) -> Self:
        if self.best in self.among:
            raise ValueError(f"among lists the rivals of {self.best}; leave the best setting itself out")
        return self

    def requirements(self, table: str) -> Iterator[Requirement]:
        """One requirement per metric, outer setting and rival setting."""
        for (metric, direction), setting in product(self.metrics.items(), self.settings):
            best = self.method.at(table, metric, {**setting, **self.best})
            for rival in self.among:
                yield Exceeds(best, self.method.at(table, metric, {**setting, **rival}), direction)


class _ClaimBase(StrictModel, ABC):
    """A sentence of a paper that asserts something measurable.

    `published_supports` says what the paper's own printed numbers make of it: True, False (then `why`), or
    None where the needed numbers are not all printed (then `why`). `also` names the places that repeat it.
    """

    id: Annotated[str, Field(pattern=r"^(ega|dfg|scorecampp)\.c\d\d[a-z]?$")]
    quote: str
    place: str
    also: list[str] = []
    table: TableId | Annotated[list[TableId], Field(min_length=1)]
    published_supports: bool | None = True
    why: str = ""

    @model_validator(mode="after")
    def _short_and_explained(self) -> Self:
        if len(self.quote.split()) > 25:
            raise ValueError(f"{self.id}: quote at most 25 words, got {len(self.quote.split())}")
        if self.published_supports is not True and not self.why:
            raise ValueError(f"{self.id}: say why the published numbers do not support it")
        return self

    @property
    def tables(self) -> list[str]:
        """Ids of the tables the claim is about."""
        return [self.table] if isinstance(self.table, str) else list(self.table)

    @abstractmethod
    def _requirements_in(self, table: str) -> Iterator[Requirement]: ...

    @cached_property
    def requirements(self) -> tuple[Requirement, ...]:
        """Everything that must hold for the claim to hold."""
        return tuple(requirement for table in self.tables for requirement in self._requirements_in(table))

    def cells(self) -> frozenset[CellAddress]:
        """The cells on which the verdict depends."""
        return frozenset(cell for requirement in self.requirements for cell in requirement.cells)

    def evaluate(self, lookup: Lookup, *, paired: PairedDifference | None = None, exact: bool = False) -> ClaimOutcome:
        """Judge the claim by the numbers `lookup` gives; see `Evidence` for `paired` and `exact`."""
        return judge_all(self.id, self.requirements, Evidence(lookup, paired, exact))


class OrderingClaim(_ClaimBase):
    """One row beats others."""

    kind: Literal["ordering"]
    test: OrderingTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


class ValueClaim(_ClaimBase):
    """A cell has a quoted value."""

    kind: Literal["value"]
    test: ValueTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


class GapClaim(_ClaimBase):
    """Two cells differ by a quoted amount."""

    kind: Literal["gap"]
    test: GapTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


class TrendClaim(_ClaimBase):
    """A metric rises or falls along a setting."""

    kind: Literal["trend"]
    test: TrendTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


class BestSettingClaim(_ClaimBase):
    """One setting is the best."""

    kind: Literal["best_setting"]
    test: BestSettingTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


class RankClaim(_ClaimBase):
    """A row has a given rank."""

    kind: Literal["rank"]
    test: RankTest

    def _requirements_in(self, table: str) -> Iterator[Requirement]:
        return self.test.requirements(table)


Claim = Annotated[
    OrderingClaim | ValueClaim | GapClaim | TrendClaim | BestSettingClaim | RankClaim,
    Field(discriminator="kind"),
]


class NotEncoded(StrictModel):
    """A sentence that sounds like a claim and is not tested, with the reason."""

    quote: str
    place: str
    why: str


class PaperClaims(StrictModel):
    """All claims of one paper, and the sentences left out on purpose."""

    paper: Paper
    claims: list[Claim]
    not_encoded: list[NotEncoded] = []

    @model_validator(mode="after")
    def _ids_belong_to_the_paper_once(self) -> Self:
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


def lookup_in(estimates: Mapping[CellAddress, Estimate]) -> Lookup:
    """A lookup over a plain mapping."""

    def lookup(method: str, metric: str, setting: Mapping[str, SettingValue], table: str, /) -> Estimate | None:
        return estimates.get(CellAddress.of(table, method, metric, setting))

    return lookup


def published_estimates() -> dict[CellAddress, Estimate]:
    """Every printed number of the three papers with its rounding interval."""
    tables = [table for paper in PAPERS for table in load_published(paper)]
    return {address: value for table in tables for address, value in table.estimates().items()}
