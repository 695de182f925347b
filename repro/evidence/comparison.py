"""Our rows beside the printed cells they stand for, with the interval each number deserves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repro.evidence.estimate import Estimate
from repro.evidence.intervals import image_interval, mean_interval
from repro.evidence.labels import own_label
from repro.evidence.published import Metric, PublishedCell, PublishedTable, published_table
from repro.evidence.record import Record, Row, Setting


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
    # 0 and 0.0 are one setting, as in `repro.evidence.cells`.
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
