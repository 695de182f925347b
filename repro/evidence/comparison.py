"""Our rows beside the printed cells they stand for, with the interval each number deserves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repro.evidence.decisions import seeds_needed
from repro.evidence.intervals import Estimate, image_interval, mean_interval, paired_interval, unpaired_interval
from repro.evidence.published import (
    CellAddress,
    Metric,
    PublishedCell,
    PublishedTable,
    SettingValue,
    own_label,
    published_table,
    rounding_interval,
)
from repro.evidence.record import Record, Row, Setting
from repro.evidence.requirements import Equals, Evidence, Exceeds, Requirement


@dataclass(frozen=True)
class CellComparison:
    """One cell: what the paper prints, what we measured; either may be missing."""

    method: str
    method_label: str
    metric: str
    metric_label: str
    unit: str
    better: str
    setting: Setting
    published: PublishedCell | None
    ours: Estimate | None
    seeds: int
    images: int | None

    @property
    def ours_text(self) -> str:
        """`4.2 [3.9, 4.5]`, written as the paper prints it; says where nothing was run.

        With at least one decimal, but for whole numbers without an interval.
        """
        if self.ours is None:
            return "published, not re-run" if self.published else "–"
        printed = self.published.printed.lower() if self.published else "0.00"
        mantissa, exponent, _ = printed.partition("e")
        decimals = max(1, len(mantissa.partition(".")[2]))
        style = f".{decimals}{'e' if exponent else 'f'}"
        if self.ours.low in (float("-inf"), self.ours.high) or self.ours.high == float("inf"):
            whole = self.ours.value.is_integer() and "." not in printed
            return f"{self.ours.value:.0f}" if whole else f"{self.ours.value:{style}}"
        return f"{self.ours.value:{style}} [{self.ours.low:{style}}, {self.ours.high:{style}}]"

    @property
    def count_text(self) -> str:
        """`3 seeds, 500 images`; a dash where neither plays a part."""
        seeds = f"{self.seeds} seed{'s' if self.seeds != 1 else ''}" if self.seeds else ""
        return ", ".join(filter(None, [seeds, f"{self.images} images" if self.images else ""])) or "–"

    @property
    def published_text(self) -> str:
        """As printed, with ± where printed."""
        if self.published is None:
            return "–"
        spread = "" if self.published.spread is None else f" ± {self.published.spread:g}"
        return f"{self.published.printed}{spread}"


def sample_key(method: str, metric: str, seed: int | None, setting: Setting | None = None) -> str:
    """Key of the values per image in `Record.samples`."""
    axes = "".join(f"|{name}={value}" for name, value in sorted((setting or {}).items()))
    return f"{method}|{metric}|{'' if seed is None else seed}{axes}"


def estimate(rows: Sequence[Row], record: Record) -> Estimate:
    """One cell's number over its seeds, or over its images where there is one seed.

    A single value without images or an interval of its own gets an unbounded one, on which nothing can be decided.

    Raises:
        ValueError: `rows` is empty.
    """
    if not rows:
        raise ValueError("an estimate needs at least one row")
    values = [row.value for row in rows]
    if len(values) > 1:
        return mean_interval(values)
    row = rows[0]
    sample = record.samples.get(sample_key(row.method, row.metric, row.seed, row.setting))
    if sample is not None and len(sample) > 1:
        return image_interval(sample, bounds=(0.0, 100.0) if set(sample) <= {0.0, 100.0} else None)
    if row.low is None or row.high is None:
        return Estimate(row.value, -math.inf, math.inf, 1, "one value, no interval")
    return Estimate(row.value, row.low, row.high, row.n or 1, "as recorded")


def compare(record: Record) -> list[CellComparison]:
    """Every printed cell of the record's table in printed order, then our own rows that the paper has no cell for."""
    table = find_table(record.id)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in record.rows:
        groups.setdefault(_key(row.method, row.metric, row.setting), []).append(row)
    cells = []
    for cell in table.cells if table else []:
        rows = groups.pop(_key(cell.method, cell.metric, cell.setting), [])
        cells.append(_compare(record, table, cell, rows))
    cells += [_compare(record, table, None, rows) for rows in groups.values()]
    return cells


def find_table(id: str) -> PublishedTable | None:
    """The published table of an id; None for a figure without printed numbers."""
    try:
        return published_table(id)
    except (KeyError, ValueError):
        return None


def _key(method: str, metric: str, setting: object) -> tuple[str, str, str]:
    axes = sorted(setting.items()) if isinstance(setting, dict) else []
    # 0 and 0.0 are one setting, as in `repro.evidence.published`.
    return method, metric, repr([(name, float(value) if isinstance(value, int) else value) for name, value in axes])


def _compare(
    record: Record, table: PublishedTable | None, cell: PublishedCell | None, rows: list[Row]
) -> CellComparison:
    source = cell or rows[0]
    metric = (table.metrics.get(source.metric) if table else None) or Metric(
        label=source.metric.replace("_", " "), unit=rows[0].unit if rows else "", better="neither"
    )
    return CellComparison(
        method=source.method,
        method_label=(table.methods.get(source.method) if table else None) or own_label(source.method),
        metric=source.metric,
        metric_label=metric.label,
        unit=metric.unit,
        better=metric.better,
        setting=dict(source.setting),
        published=cell,
        ours=estimate(rows, record) if rows else None,
        seeds=len({row.seed for row in rows} - {None}),
        images=max((row.n for row in rows if row.n is not None), default=None),
    )


def headline(record: Record) -> CellComparison | None:
    """The cell a reader asks for first: the paper's own method and the table's first metric, where we measured it."""
    own = record.id.split("/")[0]
    cells = [cell for cell in compare(record) if cell.ours is not None]
    printed = [cell for cell in cells if cell.published is not None]
    candidates = [cell for cell in printed if cell.method == own] or printed
    return candidates[0] if candidates else None


# What the records of one preset hold, addressed as claims address it: cells, and differences between cells.

Unit = Literal["seeds", "images"]
RunKey = tuple[int | None, int]
"""Seed, and which of the rows that share it: runs over class combinations repeat a seed."""


@dataclass(frozen=True)
class PairedValues:
    """First minus second cell, one value per pair, with the interval of their mean."""

    interval: Estimate
    values: tuple[float, ...]
    unit: Unit


class Measurements:
    """Estimates and paired differences over a set of records (one per table), each computed once."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.records = dict(records)
        self._pairs: dict[tuple[CellAddress, CellAddress], PairedValues | None] = {}
        self._estimates: dict[CellAddress, Estimate] = {}

    @cached_property
    def _rows(self) -> dict[CellAddress, list[Row]]:
        found: dict[CellAddress, list[Row]] = {}
        for record in self.records.values():
            for row in record.rows:
                address = CellAddress.of(record.id, row.method, row.metric, row.setting)
                found.setdefault(address, []).append(row)
        return found

    @property
    def evidence(self) -> Evidence:
        """The same numbers in the form claims are judged by."""
        return Evidence(self._lookup, self._paired_interval)

    def rows(self, address: CellAddress) -> list[Row]:
        """The measured rows of one cell, one per run; empty where it was not measured."""
        return self._rows.get(address, [])

    def addresses(self, table: str) -> list[CellAddress]:
        """Every measured cell of one table."""
        return [address for address in self._rows if address.table == table]

    def cell(self, address: CellAddress) -> Estimate | None:
        """Estimate of one cell, over its seeds or, for one seed, over its images."""
        rows = self.rows(address)
        if rows and address not in self._estimates:
            self._estimates[address] = estimate(rows, self.records[address.table])
        return self._estimates.get(address)

    def values(self, address: CellAddress) -> tuple[list[float], Unit]:
        """The values behind a cell's interval: one per run, or one per image of a single run that kept them."""
        rows = self.rows(address)
        if len(rows) == 1:
            kept = self._images(address.table, rows[0])
            if kept:
                return kept, "images"
        return [row.value for row in rows], "seeds"

    def pairs(self, first: CellAddress, second: CellAddress) -> PairedValues | None:
        """First minus second over what both share: runs (and their images), or the images of a single run.

        None where the two are not of one record or share neither; a claim then falls back on two intervals.
        """
        key = (first, second)
        if key not in self._pairs:
            self._pairs[key] = self._pair(first, second)
        return self._pairs[key]

    def _lookup(self, method: str, metric: str, setting: Mapping[str, SettingValue], table: str, /) -> Estimate | None:
        return self.cell(CellAddress.of(table, method, metric, setting))

    def _paired_interval(self, first: CellAddress, second: CellAddress, /) -> Estimate | None:
        paired = self.pairs(first, second)
        if paired is not None:
            return paired.interval
        one, other = self.rows(first), self.rows(second)
        if min(len(one), len(other)) < 2:
            return None
        return unpaired_interval([row.value for row in one], [row.value for row in other])

    def _pair(self, first: CellAddress, second: CellAddress) -> PairedValues | None:
        if first.table != second.table or first.table not in self.records:
            return None
        one, other = _by_run(self.rows(first)), _by_run(self.rows(second))
        shared = [(one[key], other[key]) for key in one if key in other]
        if not shared:
            return None
        images = [self._image_pair(first.table, *pair) for pair in shared]
        if len(shared) == 1:
            return None if images[0] is None else _over_images(*images[0])
        return _over_runs(shared, images)

    def _image_pair(self, table: str, one: Row, other: Row) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Values per image of both rows; None unless both hold every image of the run, in the same order."""
        first, second = self._images(table, one), self._images(table, other)
        alike = (row for row in self.records[table].rows if _metric_of_run(row) == _metric_of_run(one))
        # Undefined values were dropped from a shorter list, so that its places no longer name the same images.
        complete = max(len(self._images(table, row)) for row in alike)
        if len(first) != complete or len(second) != complete or complete < 2:
            return None
        return np.asarray(first), np.asarray(second)

    def _images(self, table: str, row: Row) -> list[float]:
        """Values per image of a row, empty where the record kept none."""
        return self.records[table].samples.get(sample_key(row.method, row.metric, row.seed, row.setting), [])


def _metric_of_run(row: Row) -> tuple[str, str, str, int | None]:
    return row.metric, row.dataset, row.network, row.seed


def _by_run(rows: Sequence[Row]) -> dict[RunKey, Row]:
    runs: dict[RunKey, Row] = {}
    for row in rows:
        occurrence = sum(key[0] == row.seed for key in runs)
        runs[row.seed, occurrence] = row
    return runs


def _over_images(first: NDArray[np.float64], second: NDArray[np.float64]) -> PairedValues:
    interval = paired_interval(first, second, over="images")
    return PairedValues(interval, tuple((first - second).tolist()), "images")


def _over_runs(
    shared: Sequence[tuple[Row, Row]],
    images: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]] | None],
) -> PairedValues:
    """Over runs, and over their images too where every run kept them: new seeds *and* new images."""
    first, second = (np.array([pair[side].value for pair in shared]) for side in (0, 1))
    kept = [pair for pair in images if pair is not None]
    seeds = {row.seed for row, _ in shared}
    if len(kept) == len(shared) == len(seeds):
        interval = paired_interval(
            np.stack([pair[0] for pair in kept]), np.stack([pair[1] for pair in kept]), over="seeds and images"
        )
    else:
        interval = paired_interval(first, second, over="seeds")
    if interval.low == interval.high:  # the seed had no effect, and no images are left to carry the uncertainty
        interval = Estimate(interval.value, -np.inf, np.inf, interval.n, "runs agree exactly, no interval")
    return PairedValues(interval, tuple((first - second).tolist()), "seeds")


# What would settle an open question: how many seeds, or images where there is one seed.

FEW_SEEDS = 3
_BEYOND_REACH = 1_000_000


@dataclass(frozen=True)
class Need:
    """`count` units in all; None where the spread is unknown or the effect is too close to the boundary."""

    count: int | None
    unit: Unit

    @property
    def sentence(self) -> str:
        """What to run next."""
        if self.count is None:
            return f"How many {self.unit} would settle it cannot be told: run at least {FEW_SEEDS} seeds first."
        return f"About {self.count:,} {self.unit} in all would settle it (80 % power at the effect seen so far)."


def units_needed(measured: Measurements, requirement: Requirement, quantity: Estimate | None) -> Need:
    """Seeds (or images) at which the interval would clear the boundary if the effect is as seen so far."""
    values, unit = _values(measured, requirement)
    if quantity is None or len(values) < 2 or np.ptp(values) == 0:
        return Need(None, unit)
    distance = _distance(requirement, quantity.value)
    spread = float(np.std(values, ddof=1))
    if distance == 0 or (spread / distance) ** 2 > _BEYOND_REACH:
        return Need(None, unit)
    return Need(seeds_needed(spread, distance), unit)


def _values(measured: Measurements, requirement: Requirement) -> tuple[list[float], Unit]:
    if len(requirement.cells) == 2:
        paired = measured.pairs(*requirement.cells)
        return (list(paired.values), paired.unit) if paired else ([], "seeds")
    return measured.values(requirement.cells[0])


def _distance(requirement: Requirement, value: float) -> float:
    if isinstance(requirement, Exceeds):
        return abs(value - requirement.margin)
    return _distance_to_region(requirement, value)


def _distance_to_region(requirement: Equals, value: float) -> float:
    low, high = rounding_interval(requirement.quoted)
    return min(abs(value - (low - requirement.tolerance)), abs(value - (high + requirement.tolerance)))
