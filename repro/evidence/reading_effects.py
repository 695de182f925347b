"""What a reading changes: rows of a record that name another option, against the option in force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from repro.evidence.cells import CellAddress, SettingValue
from repro.evidence.measurements import Measurements, PairedValues
from repro.evidence.readings import Reading, option_name, readings_for
from repro.evidence.record import Record


@dataclass(frozen=True)
class ReadingEffect:
    """One method and metric under two options: `option` minus `baseline`, paired."""

    reading: Reading
    record: Record
    cell: CellAddress
    """The cell under `option`."""
    option: str
    baseline: str
    difference: PairedValues

    @property
    def cell_without_axis(self) -> CellAddress:
        """The cell as it is called without the option."""
        axis = self.reading.id.rpartition(".")[2]
        setting = {name: value for name, value in self.cell.setting if name != axis}
        return CellAddress.of(self.cell.table, self.cell.method, self.cell.metric, setting)


def options_run(reading: Reading, records: dict[str, Record]) -> dict[str, list[str]]:
    """Option → ids of the records that had it in force, as the records say."""
    found: dict[str, list[str]] = {}
    for id, record in records.items():
        if reading.id in record.readings:
            found.setdefault(record.readings[reading.id], []).append(id)
    return found


def reading_effects(measured: Measurements) -> list[ReadingEffect]:
    """Every effect the records allow: rows whose setting has an axis named as a reading's last part."""
    return [effect for record in measured.records.values() for effect in _effects_in(record, measured)]


def _effects_in(record: Record, measured: Measurements) -> Iterator[ReadingEffect]:
    if record.preset == "smoke":
        return
    addresses = measured.addresses(record.id)
    axes = {name for address in addresses for name, _ in address.setting}
    for axis in sorted(axes):
        reading = _reading_of(axis, record)
        if reading is None:
            continue
        for address in addresses:
            baseline = _baseline(address, axis, reading, measured)
            pairs = measured.pairs(address, baseline) if baseline else None
            if baseline and pairs:
                names = (option_name(dict(address.setting)[axis]), _option_of(baseline, axis, reading, record))
                yield ReadingEffect(reading, record, address, *names, pairs)


def _reading_of(axis: str, record: Record) -> Reading | None:
    """The ledger entry an axis switches; one about the metric goes first, since rows are measurements."""
    candidates = [reading for reading in readings_for(record.id) if reading.id.rpartition(".")[2] == axis]
    return min(candidates, key=lambda r: (".metric." not in r.id, r.id not in record.readings), default=None)


def _baseline(address: CellAddress, axis: str, reading: Reading, measured: Measurements) -> CellAddress | None:
    """The same cell without the axis, or at the default option; None for the baseline itself."""
    setting: dict[str, SettingValue] = dict(address.setting)
    if axis not in setting:
        return None
    without = {name: value for name, value in setting.items() if name != axis}
    plain = CellAddress.of(address.table, address.method, address.metric, without)
    if measured.rows(plain):
        return plain
    default = CellAddress.of(address.table, address.method, address.metric, {**without, axis: str(reading.default)})
    return default if default != address and measured.rows(default) else None


def _option_of(baseline: CellAddress, axis: str, reading: Reading, record: Record) -> str:
    given = dict(baseline.setting).get(axis)
    if given is not None:
        return option_name(given)
    return record.readings.get(reading.id, option_name(reading.default))
