"""What the records of one preset hold, addressed as claims address it: cells, and differences between cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from repro.evidence.cells import CellAddress, SettingValue
from repro.evidence.comparison import estimate, sample_key
from repro.evidence.estimate import Estimate
from repro.evidence.intervals import paired_interval, unpaired_interval
from repro.evidence.record import Record, Row
from repro.evidence.requirements import Evidence

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
