"""Our rows beside the printed cells they stand for, with the interval each number, and each difference, deserves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from repro.evidence.published import (
    CellAddress,
    PublishedCell,
    PublishedTable,
    SettingValue,
    find_metric,
    find_table,
    own_label,
)
from repro.evidence.record import Record, Row, Setting
from repro.evidence.statistics import (
    Estimate,
    Floats,
    Over,
    PooledVariance,
    image_interval,
    interval_difference,
    mean_interval,
    no_interval,
    paired_interval,
    pooled_variance,
    two_level_interval,
    unpaired_interval,
    with_doubt,
)


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
    runs: str
    """E.g. "3 seeds"; empty where no seed plays a part."""
    images: int | None
    ran: Mapping[str, str] = field(default_factory=dict)
    """Data set and network that were really run, by the name of their axis."""

    @property
    def axes(self) -> dict[str, str]:
        """The setting as it is shown: what was run, and for what it stands, e.g. "squeezenet (for vgg16)"."""
        ran = {name: self.ran.get(name, str(value)) for name, value in self.setting.items()}
        return {
            name: str(value) if ran[name] == str(value) else f"{ran[name]} (for {value})"
            for name, value in self.setting.items()
        }

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
        if not self.ours.bounded or self.ours.low == self.ours.high:
            whole = self.ours.value.is_integer() and "." not in printed
            return f"{self.ours.value:.0f}" if whole else f"{self.ours.value:{style}}"
        return f"{self.ours.value:{style}} [{self.ours.low:{style}}, {self.ours.high:{style}}]"

    @property
    def count_text(self) -> str:
        """`3 seeds, 500 images`; a dash where neither plays a part."""
        return ", ".join(filter(None, [self.runs, f"{self.images} images" if self.images else ""])) or "–"

    @property
    def published_text(self) -> str:
        """As printed, with ± where printed."""
        if self.published is None:
            return "–"
        spread = "" if self.published.spread is None else f" ± {self.published.spread:g}"
        return f"{self.published.printed}{spread}"


def compare(record: Record) -> list[CellComparison]:
    """Every printed cell of the record's table in printed order, then our own rows that the paper has no cell for."""
    table, measured = find_table(record.id), Measurements({record.id: record})
    printed = {table.address(cell): cell for cell in table.cells} if table else {}
    own = [address for address in measured.addresses(record.id) if address not in printed]
    return [_compare(measured, table, address, printed.get(address)) for address in (*printed, *own)]


def _compare(
    measured: Measurements, table: PublishedTable | None, address: CellAddress, cell: PublishedCell | None
) -> CellComparison:
    metric, rows = find_metric(address), measured.rows(address)
    setting: Setting = dict(cell.setting) if cell else dict(rows[0].setting)
    printed_unit = table is not None and address.metric in table.metrics
    return CellComparison(
        method=address.method,
        method_label=(table.methods.get(address.method) if table else None) or own_label(address.method),
        metric=address.metric,
        metric_label=metric.label,
        unit=metric.unit if printed_unit or not rows else rows[0].unit,
        better=metric.better,
        setting=setting,
        published=cell,
        ours=measured.cell(address),
        runs=_runs_text(len({row.seed for row in rows} - {None}), measured.records[address.table]),
        images=max((row.n for row in rows if row.n is not None), default=None),
        ran={
            axis: ", ".join(sorted(names))
            for axis in ("dataset", "network")
            if (names := {str(getattr(row, axis)) for row in rows} - {""})
        },
    )


def headline(record: Record) -> CellComparison | None:
    """The cell a reader asks for first: the paper's own method and the table's first metric, where we measured it."""
    own = record.id.split("/")[0]
    cells = [cell for cell in compare(record) if cell.ours is not None]
    printed = [cell for cell in cells if cell.published is not None]
    candidates = [cell for cell in printed if cell.method == own] or printed
    return candidates[0] if candidates else None


def sample_key(method: str, metric: str, seed: int | None, setting: Setting | None = None) -> str:
    """Key of the values per image in `Record.samples`."""
    axes = "".join(f"|{name}={value}" for name, value in sorted((setting or {}).items()))
    return f"{method}|{metric}|{'' if seed is None else seed}{axes}"


# What runs are repeated over: DFG's rows carry the place of a class combination where others carry a seed.

_COMBINATIONS = "class combinations (of one training seed and one source)"


def run_unit(record: Record) -> str:
    """What the runs of a record are repeated over, and so what an interval over them generalises to."""
    return _COMBINATIONS if "combinations" in record.parameters else "seeds"


def _runs_text(runs: int, record: Record) -> str:
    unit = run_unit(record).split(" (")[0]
    return f"{runs} {unit if runs != 1 else unit.removesuffix('s')}" if runs else ""


# What the records of one preset hold, addressed as claims address it: cells, and differences between cells.

RunKey = tuple[int | None, str]
"""Seed and data set of a run; for class combinations the place of the combination instead of a seed."""


class Measurements:
    """Estimates and paired differences over a set of records (one per table), each computed once."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.records = dict(records)
        self._differences: dict[tuple[CellAddress, CellAddress], Estimate | None] = {}
        self._estimates: dict[CellAddress, Estimate] = {}

    @cached_property
    def _rows(self) -> dict[CellAddress, list[Row]]:
        found: dict[CellAddress, list[Row]] = {}
        for record in self.records.values():
            for row in record.rows:
                address = CellAddress.of(record.id, row.method, row.metric, row.setting)
                found.setdefault(address, []).append(row)
        return found

    def rows(self, address: CellAddress) -> list[Row]:
        """The measured rows of one cell, one per run; empty where it was not measured."""
        return self._rows.get(address, [])

    def addresses(self, table: str) -> list[CellAddress]:
        """Every measured cell of one table."""
        return [address for address in self._rows if address.table == table]

    def cell(self, address: CellAddress) -> Estimate | None:
        """One cell's number over its runs, and over its images too where every run kept them; None where not measured.

        A single value without images or an interval of its own gets none, and then nothing can be decided on it.
        """
        rows = self.rows(address)
        if rows and address not in self._estimates:
            found = self._cell(address.table, rows)
            self._estimates[address] = self._named(found, address.table)
        return self._estimates.get(address)

    def difference(self, first: CellAddress, second: CellAddress) -> Estimate | None:
        """First minus second: paired over the runs and images both share, else from two groups of runs, else from two
        intervals; None where one was not measured."""
        paired = self.paired(first, second)
        if paired is not None or not (self.rows(first) and self.rows(second)):
            return paired
        one, other = ([row.value for row in self.rows(address)] for address in (first, second))
        if min(len(one), len(other)) > 1:
            return unpaired_interval(one, other)
        a, b = self.cell(first), self.cell(second)
        return interval_difference(a, b) if a and b else None

    def quantity(self, cells: Sequence[CellAddress]) -> Estimate | None:
        """The value of one cell, or the difference of two."""
        return self.cell(cells[0]) if len(cells) == 1 else self.difference(cells[0], cells[1])

    def paired(self, first: CellAddress, second: CellAddress) -> Estimate | None:
        """First minus second over the runs, or the images of a single run, that both share; None where there are none.

        Over runs, the variance of a difference is pooled over the methods (or settings) of the column where they allow
        it: see `pooled_variance`.
        """
        key = (first, second)
        if key not in self._differences:
            found = self._paired(first, second)
            self._differences[key] = self._named(found, first.table) if found else None
        return self._differences[key]

    def _cell(self, table: str, rows: list[Row]) -> Estimate:
        images = [self._images(table, row) for row in rows]
        if len(rows) > 1:
            sizes = {len(values) for values in images}
            if len(sizes) == 1 and min(sizes) > 1:
                return two_level_interval(images)
            return mean_interval([row.value for row in rows])
        (row,) = rows
        if len(images[0]) > 1:
            return image_interval(images[0], bounds=(0.0, 100.0) if set(images[0]) <= {0.0, 100.0} else None)
        if row.low is None or row.high is None:
            return no_interval(row.value, 1, "one value")
        return Estimate(row.value, row.low, row.high, row.n or 1, "as recorded")

    def _paired(self, first: CellAddress, second: CellAddress) -> Estimate | None:
        if first.table != second.table or first.table not in self.records:
            return None
        one, other = _by_run(self.rows(first)), _by_run(self.rows(second))
        shared = [key for key in one if key in other]
        if not shared:
            return None
        images = [self._image_pair(first.table, one[key], other[key]) for key in shared]
        kept = [pair for pair in images if pair is not None]
        if len(shared) == 1:
            return paired_interval(kept[0][0], kept[0][1], over="images") if kept else None
        pooled = self._pooled(first, second, shared)
        pair = [np.array([runs[key].value for key in shared]) for runs in (one, other)]
        over: Over = "seeds"
        if len(kept) == len(shared):
            pair, over = [np.stack([values[side] for values in kept]) for side in (0, 1)], "seeds and images"
        return paired_interval(pair[0], pair[1], over, pooled)

    def _pooled(self, first: CellAddress, second: CellAddress, shared: Sequence[RunKey]) -> PooledVariance | None:
        """From every row of the column that ran all of `shared`: its methods, or the settings of one method."""

        def alike(address: CellAddress) -> bool:
            if first.setting == second.setting:
                return address.setting == first.setting
            axes = [name for name, _ in address.setting]
            return address.method == first.method == second.method and axes == [name for name, _ in first.setting]

        columns = [
            _by_run(self.rows(address))
            for address in self.addresses(first.table)
            if address.metric == first.metric and alike(address)
        ]
        table = [[runs[key].value for key in shared] for runs in columns if all(key in runs for key in shared)]
        return pooled_variance(table) if len(table) > 2 else None

    def _image_pair(self, table: str, one: Row, other: Row) -> tuple[Floats, Floats] | None:
        """Values per image of both rows; None unless both hold every image of the run, in the same order.

        The record's image ids say how many there are. Where it has none, that is the longest list of the run: undefined
        values were dropped from a shorter one, so that its places no longer name the same images.
        """
        first, second = self._images(table, one), self._images(table, other)
        alike = (row for row in self.records[table].rows if _metric_of_run(row) == _metric_of_run(one))
        complete = max(len(self._images(table, row)) for row in alike)
        known = self._image_counts(table, one.dataset)
        if known and complete not in known:
            return None
        if len(first) != complete or len(second) != complete or complete < 2:
            return None
        return np.asarray(first), np.asarray(second)

    def _images(self, table: str, row: Row) -> list[float]:
        """Values per image of a row, empty where the record kept none."""
        return self.records[table].samples.get(sample_key(row.method, row.metric, row.seed, row.setting), [])

    def _image_counts(self, table: str, dataset: str) -> set[int]:
        """How many images of a data set the record names by id; empty where it names none."""
        ids = self.records[table].image_ids.items()
        return {len(names) for source, names in ids if source.partition("/")[0] == dataset}

    def _named(self, estimate: Estimate, table: str) -> Estimate:
        """With what was repeated and how images were paired in the method's name."""
        record = self.records[table]
        method = estimate.method.replace("over seeds", f"over {run_unit(record)}")
        by_position = "images" in method and not record.image_ids
        return replace(estimate, method=f"{method}, images by position" if by_position else method)


def _metric_of_run(row: Row) -> tuple[str, str, str, int | None]:
    return row.metric, row.dataset, row.network, row.seed


def _by_run(rows: Sequence[Row]) -> dict[RunKey, Row]:
    return {(row.seed, row.dataset): row for row in rows}


# Why a measured number must not decide, whatever its interval.

_BOX_METRICS = ("top1_loc_error", "corloc_error", "max_box_acc_v2_error")


def doubts(measured: Measurements, cells: Sequence[CellAddress], about_training: bool) -> Estimate | None:
    """The quantity of `cells` with every reason why it decides nothing; None where it was not measured.

    Two reasons lie outside the interval: one training says nothing about a way of training, and a box threshold chosen
    on the evaluated images flatters a value (but not a difference of two that chose it alike).
    """
    quantity = measured.quantity(cells)
    if quantity is None:
        return None
    if len(cells) == 1 and chosen_on_test_images(measured, cells[0]):
        held_out = measured.cell(cells[0].under({"threshold": "validation"}))
        if held_out is not None:
            quantity = replace(held_out, method=f"{held_out.method}, threshold from held-out images")
        else:
            quantity = with_doubt(quantity, "its box threshold was chosen on the evaluated images")
    if about_training and min(len(measured.rows(cell)) for cell in cells) == 1:
        quantity = with_doubt(quantity, ONE_TRAINING)
    return quantity


ONE_TRAINING = "one training"


def chosen_on_test_images(measured: Measurements, address: CellAddress) -> bool:
    """Whether a value stands on the oracle's threshold: the best of the very images it is measured on."""
    chosen: SettingValue | None = dict(address.setting).get("threshold")
    policy = chosen or measured.records[address.table].parameters.get("threshold")
    return address.metric in _BOX_METRICS and policy == "oracle"
