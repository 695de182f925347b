"""Verdicts as tables and plots for notebooks and pages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Console

from repro.catalogue import PAPERS, Preset, one_of
from repro.evidence.claims import Equals
from repro.evidence.comparison import CellComparison, compare, headline, run_unit
from repro.evidence.decisions import Verdict
from repro.evidence.judgement import SMOKE_REASON, CellVerdict, ClaimVerdict, Judge, write_stated
from repro.evidence.published import CellAddress, find_metric
from repro.evidence.readings import ReadingEffect
from repro.evidence.record import Record, records_in
from repro.evidence.sentences import PartVerdict, number, row_label, short_text
from repro.evidence.statistics import Estimate
from repro.project import project_root, reports_root
from repro.report.html import bullet_list, cell_name, data_table

# Plots as inline SVG: sharp at any size, no script, with their content as text for those who cannot see them.

MARKER_SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
    "M-5,-5H5V5H-5Z",
    "M0,-6L6,5H-6Z",
    "M0,-6L6,0L0,6L-6,0Z",
)
"""Circle, square, triangle, diamond: told apart without colour."""

WIDTH, LABEL_WIDTH, MARK_WIDTH, ROW_HEIGHT = 1080, 470, 140, 24
_LABEL_LETTERS = 60


@dataclass(frozen=True)
class IntervalRow:
    """One line of an interval plot. `tone` repeats as colour what `mark` says in words; `band` is ± a tolerance."""

    label: str
    value: float
    low: float
    high: float
    mark: str
    tone: str
    band: float = 0.0


@dataclass(frozen=True)
class Point:
    """One dot of a scatter plot with the interval of its height."""

    x: float
    y: float
    low: float
    high: float
    label: str
    group: str


@dataclass(frozen=True)
class Scale:
    """Linear map from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value; values beyond the ends stay at them."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Four to nine round numbers inside the range."""
        raw = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def span(values: Sequence[float]) -> tuple[float, float]:
    """Range of the finite values with a margin; never of width 0."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    room = 0.05 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def interval_plot(rows: Sequence[IntervalRow], title: str, axis: str) -> str:
    """One line per row, label left, interval in the middle, verdict in words right; a rule at zero."""
    ends = [end for row in rows for end in (row.low, row.high, row.value, -row.band, row.band)]
    scale = Scale(*span([*ends, 0.0]), LABEL_WIDTH, WIDTH - MARK_WIDTH)
    bottom = 12 + ROW_HEIGHT * len(rows)
    parts = [_vertical(scale(tick), bottom, "grid") for tick in scale.ticks()]
    parts += [_text(scale(tick), bottom + 18, f"{tick:g}", "middle") for tick in scale.ticks()]
    parts.append(_vertical(scale(0), bottom, "zero"))
    parts.append(_text((LABEL_WIDTH + WIDTH - MARK_WIDTH) / 2, bottom + 40, axis, "middle"))
    for index, row in enumerate(rows):
        parts += _interval_row(row, scale, 12 + ROW_HEIGHT * (index + 0.5))
    alt = f"{title}. " + "; ".join(f"{row.label}: {_numbers(row)}, {row.mark}" for row in rows)
    return _figure(title, alt, "".join(parts), WIDTH, bottom + 52)


def scatter_plot(points: Sequence[Point], title: str, x_axis: str, y_axis: str) -> str:
    """Ours over the paper's on one scale with the line of equality; one marker shape per group."""
    side, left = 360, 70
    low, high = span([v for point in points for v in (point.x, point.y, point.low, point.high)])
    across, up = Scale(low, high, left, left + side), Scale(low, high, 12 + side, 12)
    parts = [f'<line class="zero" x1="{left}" y1="{12 + side}" x2="{left + side}" y2="12"/>']
    for tick in across.ticks():
        parts += [
            _text(across(tick), side + 30, f"{tick:g}", "middle"),
            _text(left - 8, up(tick) + 4, f"{tick:g}", "end"),
        ]
        parts.append(f'<line class="grid" x1="{left}" y1="{up(tick):.1f}" x2="{left + side}" y2="{up(tick):.1f}"/>')
    groups = list(dict.fromkeys(point.group for point in points))
    for point in points:
        parts += _point(point, across, up, groups.index(point.group))
    for index, group in enumerate(groups):
        height = 30 + 22 * index
        parts += [_marker(left + side + 24, height, index, ""), _text(left + side + 38, height + 4, group, "start")]
    parts += [_text(left + side / 2, side + 52, x_axis, "middle"), _text(left - 40, 8, y_axis, "start")]
    alt = f"{title}. " + "; ".join(f"{p.label}, {p.group}: paper {p.x:g}, ours {p.y:.2f}" for p in points)
    return _figure(title, alt, "".join(parts), 760, side + 64)


def _interval_row(row: IntervalRow, scale: Scale, height: float) -> list[str]:
    shown = row.label if len(row.label) <= _LABEL_LETTERS else row.label[: _LABEL_LETTERS - 1] + "…"
    parts = [f"<g><title>{escape(row.label)}: {escape(_numbers(row))}</title>"]
    parts.append(_text(2, height + 4, shown, "start"))
    if row.band:
        left, right = scale(-row.band), scale(row.band)
        parts.append(f'<rect class="band" x="{left:.1f}" y="{height - 9}" width="{right - left:.1f}" height="18"/>')
    bounded = math.isfinite(row.low) and math.isfinite(row.high)
    style = row.tone if bounded else f"{row.tone} unbounded"
    left, right = scale(row.low), scale(row.high)
    parts.append(f'<line class="interval {style}" x1="{left:.1f}" y1="{height}" x2="{right:.1f}" y2="{height}"/>')
    parts.append(f'<circle class="dot {row.tone}" cx="{scale(row.value):.1f}" cy="{height}" r="5"/>')
    parts.append(_text(WIDTH - MARK_WIDTH + 12, height + 4, row.mark, "start") + "</g>")
    return parts


def _point(point: Point, across: Scale, up: Scale, group: int) -> list[str]:
    x = across(point.x)
    bar = f'<line class="bar" x1="{x:.1f}" y1="{up(point.low):.1f}" x2="{x:.1f}" y2="{up(point.high):.1f}"/>'
    name = f"{point.label}, {point.group}: paper {point.x:g}, ours {point.y:.2f}"
    return [bar if math.isfinite(point.low) and math.isfinite(point.high) else "", _marker(x, up(point.y), group, name)]


def _marker(x: float, y: float, group: int, name: str) -> str:
    title = f"<title>{escape(name)}</title>" if name else ""
    kind = group % len(MARKER_SHAPES)
    place = f'transform="translate({x:.1f} {y:.1f})" d="{MARKER_SHAPES[kind]}"'
    return f'<path class="marker group{kind}" {place}>{title}</path>'


def _numbers(row: IntervalRow) -> str:
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return f"{row.value:.2f}, no interval"
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


def _vertical(x: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="8" x2="{x:.1f}" y2="{bottom}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, alt: str, body: str, width: float, height: float) -> str:
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}">{body}</svg></div></figure>'
    )


SMOKE_SENTENCE = (
    "This is a smoke run on embedded data: it checks that everything works and says nothing about the paper. "
    "Run the quick or the paper preset for an answer."
)
TRIAL_SENTENCE = (
    "This run is a trial: its parameters are not exactly those of a preset. It is kept apart and gets no verdict."
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


def effect_text(part: PartVerdict | None) -> str:
    """A deciding comparison with its interval, "A vs B, Average Drop: 16.00 [7.72, 28.51] %"; empty without one."""
    if part is None or part.quantity is None:
        return ""
    doubt = f" ({part.quantity.doubt})" if part.quantity.doubt else ""
    unit = find_metric(part.requirement.cells[0]).unit
    return f"{short_text(part.requirement)}: {number(part.quantity, unit)}{doubt}"


def count_text(quantity: Estimate, record: Record) -> str:
    """What stands behind an interval, e.g. "3 seeds × 500 images"."""
    spread = quantity.spread
    if spread is None:
        return str(quantity.n)
    counted = [f"{spread.seeds} {run_unit(record)}"] if spread.seeds > 1 else []
    return " × ".join([*counted, f"{spread.images} images"] if spread.images else counted) or str(quantity.n)


def shown_cell(record: Record, verdicts: Sequence[ClaimVerdict]) -> CellComparison | None:
    """The number to show for a table: what decides its first judged claim, else that of the paper's own method."""
    cells = {CellAddress.of(record.id, c.method, c.metric, c.setting): c for c in compare(record) if c.ours is not None}
    decisive = [address for verdict in verdicts if verdict.deciding for address in verdict.deciding.requirement.cells]
    return next((cells[address] for address in decisive if address in cells), None) or headline(record)


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
    if record.trial or record.preset == "smoke":
        return bullet_list([TRIAL_SENTENCE if record.trial else SMOKE_SENTENCE])
    records = {**records_in(reports_root() / record.preset), record.id: record}
    verdicts = Judge(records).claims_of_table(record.id)
    if not verdicts:
        return bullet_list([f"No claim of the paper rests on {record.title}."])
    return claim_table(f"Claims that rest on {record.title}", verdicts)


Counts = list[tuple[Verdict, int]]


def counts(verdicts: Iterable[Verdict | None]) -> Counts:
    """How often each verdict occurs, in a fixed order, without those that do not."""
    found = Counter(verdicts)
    return [(verdict, found[verdict]) for verdict in Verdict if found[verdict]]


def tally(verdicts: Sequence[ClaimVerdict]) -> tuple[Counts, Counts]:
    """Counts of both answers: in the paper's setting; in our data, or over the part that was measured."""
    return counts(v.verdict for v in verdicts), counts(v.judged for v in verdicts if v.scope)


def in_words(found: Counts) -> str:
    """E.g. "6 supported, 2 contradicted"; a dash where there is nothing to count."""
    return ", ".join(f"{count} {verdict.word}" for verdict, count in found) or "–"


def claim_plots(verdicts: Sequence[ClaimVerdict]) -> list[str]:
    """Forest plots: orderings and gap directions by unit, then quoted values and gaps against their tolerance."""
    orderings: dict[str, list[IntervalRow]] = {}
    quoted: dict[str, list[IntervalRow]] = {}
    for verdict in verdicts:
        part = verdict.deciding
        if part is None or part.quantity is None or part.judged is None:
            continue
        unit = find_metric(part.requirement.cells[0]).unit or "no unit"
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
    assert part.quantity is not None and part.judged is not None and part.region is not None
    requirement, band, origin = part.requirement, 0.0, part.region.low
    if isinstance(requirement, Equals) and part.in_our_data is None:
        origin, band = float(requirement.quoted), (part.region.high - part.region.low) / 2
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
        Point(cell.published.value, cell.ours.value, cell.ours.low, cell.ours.high, cell_name(verdict.cell),
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
        (cell_name(v.cell), v.cell.metric_label, v.cell.published_text, v.cell.ours_text, v.verdict.label, v.reason)
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
        interval = effect.difference
        apart = not interval.contains(0) and not interval.doubt
        mark = "changes it" if apart else "no clear change"
        label = f"{row_label(effect.cell_without_axis)}: {effect.option}"
        rows.append(IntervalRow(label, interval.value, interval.low, interval.high, mark, "open" if apart else "none"))
    column = find_metric(effects[0].cell)
    title = f"{table}: {column.label}, other options of {reading} minus “{baseline}”"
    return interval_plot(rows, title, f"difference in {column.label} {column.unit}".strip())


# Verdicts in the terminal.


def print_verdicts(preset: Preset, papers: Sequence[str], console: Console) -> None:
    """Print every claim with its answers, paper by paper, then the counts; one sentence for smoke.

    Raises:
        UserError: an unknown paper.
    """
    chosen = [one_of("--paper", name, PAPERS) for name in papers] or list(PAPERS)
    if preset == "smoke":
        console.print(SMOKE_REASON, markup=False)
        return
    judge = Judge(records_in(reports_root() / preset))
    for paper in chosen:
        verdicts = judge.claims(paper)
        console.print(f"{paper}, {preset} preset", style="bold", markup=False)
        for verdict in verdicts:
            if verdict.judged is not None:
                _print_claim(verdict, console)
        silent = sum(verdict.judged is None for verdict in verdicts)
        if silent:
            console.print(f"  {silent} more claims cannot be judged by these records.", markup=False)
        own, judged = tally(verdicts)
        console.print(f"  in the paper's setting: {in_words(own)}", markup=False)
        if judged:
            console.print(f"  in our data, or over the measured part: {in_words(judged)}", markup=False)


def state_verdicts(preset: Preset) -> str:
    """Write today's verdicts of a preset to `docs/stated.yaml`; returns what was done in one line."""
    target = project_root() / "docs" / "stated.yaml"
    number = write_stated(target, preset, Judge(records_in(reports_root() / preset)))
    return f"{number} statements about the {preset} preset written to docs/{target.name}"


def _print_claim(verdict: ClaimVerdict, console: Console) -> None:
    console.print(f"  {verdict.claim.id}  {verdict.label}", markup=False)
    console.print(f"      “{verdict.claim.quote}”", markup=False, style="dim")
    console.print(f"      {verdict.reason}", markup=False)
