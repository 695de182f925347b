"""Synthetic records: the printed numbers of a table as if they had been measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repro.catalogue import PAPERS
from repro.evidence.comparison import sample_key
from repro.evidence.provenance import Provenance
from repro.evidence.published import CellAddress, PublishedCell, PublishedTable, load_published
from repro.evidence.record import Record, Row
from repro.evidence.settings import expected_source
from repro.parameters import parameters_hash
from repro.vocabulary import Preset

PROVENANCE = Provenance(
    commit=None, dirty=None, inputs_hash="x", libraries={}, python="3", device="test", threads=1,
    started="2026-01-01", wall_seconds=1.0, peak_memory_bytes=1,
)  # fmt: skip


def make_record(table: str, rows: list[Row], preset: Preset = "paper", **fields: Any) -> Record:
    """A valid record of one table."""
    parameters = {"preset": preset, **fields.pop("parameters", {})}
    return Record(
        id=table, title=table, preset=preset, run_id="test", parameters=parameters,
        parameters_hash=parameters_hash(parameters), rows=rows, provenance=PROVENANCE, **fields,
    )  # fmt: skip


SEEDS = 3


def exact_rows(table: PublishedTable, cell: PublishedCell, noise: np.random.Generator, **changes: Any) -> list[Row]:
    """The printed number from three seeds that hardly differ, on the data and network the paper gives for it."""
    dataset, network = expected_source(table.address(cell))
    fields = {"dataset": dataset or "unnamed", "network": network or "unnamed", **changes}
    spread = 1e-7 * max(abs(cell.value), 1e-3) * noise.normal(size=SEEDS)
    values = cell.value + spread - spread.mean()
    names = {"method": cell.method, "metric": cell.metric, "setting": cell.setting}
    return [Row(value=value, seed=seed, **names, **fields) for seed, value in enumerate(values.tolist())]


def printed_records(preset: Preset = "paper", **changes: Any) -> dict[str, Record]:
    """One record per table with printed cells, its rows from `exact_rows`."""
    tables = [table for paper in PAPERS for table in load_published(paper) if table.cells]
    noise = np.random.default_rng(0)
    rows = {t.id: [row for cell in t.cells for row in exact_rows(t, cell, noise, **changes)] for t in tables}
    return {id: make_record(id, found, preset) for id, found in rows.items()}


def moved(records: dict[str, Record], address: CellAddress, by: float) -> dict[str, Record]:
    """The records with one cell moved."""

    def shift(row: Row) -> Row:
        if CellAddress.of(address.table, row.method, row.metric, row.setting) != address:
            return row
        return row.model_copy(update={"value": row.value + by})

    record = records[address.table]
    return records | {address.table: record.model_copy(update={"rows": [shift(row) for row in record.rows]})}


def sampled(
    table: str, means: dict[tuple[str, str], float], n: int, noise: Callable[[int], np.ndarray], **fields: Any
) -> Record:
    """One seed with values per image: what all methods share plus `noise` of their own, at the given means."""
    shared, rows, samples = np.linspace(-30, 30, n), [], {}
    for (method, metric), mean in means.items():
        values = shared + noise(n)
        values += mean - values.mean()
        rows.append(Row(method=method, metric=metric, value=mean, seed=0, n=n, dataset="scenes", network="small_cnn"))
        samples[sample_key(method, metric, 0)] = values.tolist()
    return make_record(table, rows, fields.pop("preset", "quick"), samples=samples, **fields)
