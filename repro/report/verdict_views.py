"""Verdicts as tables and plots for notebooks and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from repro.evidence.judgement import CellVerdict, ClaimVerdict, Judge, margin_of
from repro.evidence.part_verdict import PartVerdict
from repro.evidence.published import rounding_interval
from repro.evidence.reading_effects import ReadingEffect
from repro.evidence.record import Record, records_in
from repro.evidence.requirements import Equals
from repro.evidence.sentences import metric_of, row_label, short_text
from repro.evidence.verdicts import Verdict
from repro.project import reports_root
from repro.report.svg import IntervalRow, Point, interval_plot, scatter_plot
from repro.report.tables import bullet_list, data_table

SMOKE_SENTENCE = (
    "This is a smoke run on embedded data: it checks that everything works and says nothing about the paper. "
    "Run the quick or the paper preset for an answer."
)
_TONES = {Verdict.supported: "good", Verdict.contradicted: "bad", Verdict.inconclusive: "open"}


def tone(verdict: Verdict | None) -> str:
    """Colour class that repeats a verdict's symbol and word."""
    return _TONES.get(verdict, "none") if verdict is not None else "none"


def short_id(verdict: ClaimVerdict) -> str:
    """`c01a` of `ega.c01a`."""
    return verdict.claim.id.partition(".")[2]


def scope_text(verdict: ClaimVerdict) -> str:
    """The second answer: what our data, or the measured part, say; empty where the first is all there is."""
    return f"{verdict.judged.label} ({verdict.scope})" if verdict.scope and verdict.judged else ""


def claim_table(caption: str, verdicts: Sequence[ClaimVerdict]) -> str:
    """The verdict table of a notebook: claim, both answers, and why."""
    rows = [
        (f"{v.claim.id}: “{v.claim.quote}” ({v.claim.place})", v.verdict.label, scope_text(v) or "–", v.reason)
        for v in verdicts
    ]
    columns = ["claim", "in the paper's setting", "in our data or the measured part", "why"]
    return data_table(caption, columns, rows).replace('class="data"', 'class="wrapped"')


def notebook_verdicts(record: Record) -> str:
    """What a notebook shows after its result: the claims on its table, or why there are no answers.

    Claims that reach into other tables use the records those left under the same preset.
    """
    if record.preset == "smoke":
        return bullet_list([SMOKE_SENTENCE])
    records = {**records_in(reports_root() / record.preset), record.id: record}
    verdicts = Judge(records).claims_of_table(record.id)
    if not verdicts:
        return bullet_list([f"No claim of the paper rests on {record.title}."])
    return claim_table(f"Claims that rest on {record.title}", verdicts)


def counts(verdicts: Iterable[Verdict | None]) -> list[tuple[Verdict, int]]:
    """How often each verdict occurs, in a fixed order, without those that do not."""
    found = Counter(verdicts)
    return [(verdict, found[verdict]) for verdict in Verdict if found[verdict]]


def claim_plots(verdicts: Sequence[ClaimVerdict]) -> list[str]:
    """Forest plots: orderings and gap directions by unit, then quoted values and gaps against their tolerance."""
    orderings: dict[str, list[IntervalRow]] = {}
    quoted: dict[str, list[IntervalRow]] = {}
    for verdict in verdicts:
        part = verdict.deciding
        if part is None or part.quantity is None or part.judged is None:
            continue
        unit = metric_of(part.requirement.cells[0]).unit or "no unit"
        exact = isinstance(part.requirement, Equals) and part.in_our_data is None
        (quoted if exact else orderings).setdefault(unit, []).append(_claim_row(verdict, part))
    plots = [
        interval_plot(rows, f"Orderings and directions, least favourable comparison of each claim ({unit})",
                      f"advantage of the side the paper puts ahead, {unit}; right of 0 speaks for the claim")
        for unit, rows in orderings.items()
    ]  # fmt: skip
    plots += [
        interval_plot(rows, f"Quoted numbers: ours minus the paper's ({unit})",
                      f"ours minus quoted, {unit}; the shaded band is what a reproduction may miss it by")
        for unit, rows in quoted.items()
    ]  # fmt: skip
    return plots


def _claim_row(verdict: ClaimVerdict, part: PartVerdict) -> IntervalRow:
    assert part.quantity is not None and part.judged is not None
    requirement, band, origin = part.requirement, 0.0, margin_of(part.requirement)
    if isinstance(requirement, Equals) and part.in_our_data is None:
        low, high = rounding_interval(requirement.quoted)
        origin, band = float(requirement.quoted), requirement.tolerance + (high - low) / 2
    return IntervalRow(
        label=f"{part.judged.symbol} {short_id(verdict)}: {short_text(requirement)}",
        value=part.quantity.value - origin,
        low=part.quantity.low - origin,
        high=part.quantity.high - origin,
        mark=part.judged.label,
        tone=tone(part.judged),
        band=band,
    )


def cell_plot(cells: Sequence[CellVerdict], title: str) -> str:
    """Ours over the paper's, one marker per metric; empty where nothing was measured."""
    points = [
        Point(cell.published.value, cell.ours.value, cell.ours.low, cell.ours.high, _cell_label(verdict),
              cell.metric_label)
        for verdict in cells
        if (cell := verdict.cell).published is not None and cell.ours is not None
    ]  # fmt: skip
    units = {verdict.cell.unit for verdict in cells if verdict.cell.ours}
    unit = f", {next(iter(units))}" if len(units) == 1 and units != {""} else ""
    return scatter_plot(points, title, f"paper{unit}", f"ours{unit}") if points else ""


def cell_rows(cells: Sequence[CellVerdict]) -> list[tuple[str, ...]]:
    """Row, metric, paper, ours, verdict and reason of every printed cell."""
    return [
        (_cell_label(v), v.cell.metric_label, v.cell.published_text, v.cell.ours_text, v.verdict.label, v.reason)
        for v in cells
    ]


def effect_plots(effects: Sequence[ReadingEffect]) -> list[str]:
    """One plot per record, reading and metric: what switching to another option changes, row by row."""
    groups: dict[tuple[str, str, str, str], list[ReadingEffect]] = {}
    for effect in effects:
        key = (effect.record.id, effect.reading.id, effect.cell.metric, effect.baseline)
        groups.setdefault(key, []).append(effect)
    return [_effect_plot(*key, group) for key, group in groups.items()]


def _effect_plot(table: str, reading: str, metric: str, baseline: str, effects: Sequence[ReadingEffect]) -> str:
    rows = []
    for effect in effects:
        interval = effect.difference.interval
        apart = interval.low > 0 or interval.high < 0
        mark = "changes it" if apart else "no clear change"
        label = f"{row_label(effect.cell_without_axis)}: {effect.option}"
        rows.append(IntervalRow(label, interval.value, interval.low, interval.high, mark, "open" if apart else "none"))
    column = metric_of(effects[0].cell)
    title = f"{table}: {column.label}, other options of {reading} minus “{baseline}”"
    return interval_plot(rows, title, f"difference in {column.label} {column.unit}".strip())


def _cell_label(verdict: CellVerdict) -> str:
    axes = ", ".join(f"{name} = {value}" for name, value in verdict.cell.setting.items())
    return f"{verdict.cell.method_label} ({axes})" if axes else verdict.cell.method_label
