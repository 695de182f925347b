"""Plots as inline SVG: sharp at any size, no script, with their content as text for those who cannot see them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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
