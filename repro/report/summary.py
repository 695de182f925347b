"""One figure per paper for the README: every judged claim as an effect in units of the printed one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from repro.evidence.claims import Equals
from repro.evidence.decisions import Verdict
from repro.evidence.judgement import ClaimVerdict
from repro.evidence.published import published_table
from repro.evidence.sentences import PartVerdict, short_text

WIDTH, ROW, LEFT, RIGHT = 480, 38, 14, 466
REACH = 3.0
"""Ends of the axis, in printed effects; what lies beyond is drawn at the edge as an arrow, its number written out."""
_COLOURS = {Verdict.contradicted: "bad", Verdict.inconclusive: "open", Verdict.supported: "good"}
_STYLE = """text{font:12px system-ui,sans-serif;fill:#1b1f24}.q{fill:#57606a}.g{stroke:#d0d7de}.z{stroke:#1b1f24}
.p{stroke:#57606a;stroke-dasharray:4 3}.good{stroke:#0b6e4f;fill:#0b6e4f}.bad{stroke:#a4262c;fill:#a4262c}
.open{stroke:#8a6d00;fill:#8a6d00}text.good,text.bad,text.open{stroke:none;font-weight:600}rect{fill:#fff}
@media(prefers-color-scheme:dark){rect{fill:#0d1117}text{fill:#e6edf3}.q{fill:#9198a1}.g{stroke:#30363d}
.z{stroke:#e6edf3}.p{stroke:#9198a1}.good{stroke:#3fb98b;fill:#3fb98b}.bad{stroke:#ff8f8f;fill:#ff8f8f}
.open{stroke:#e0b94a;fill:#e0b94a}}"""


@dataclass(frozen=True)
class Effect:
    """A deciding comparison: our effect and its interval, divided by the printed effect of the same two cells."""

    label: str
    claims: int
    value: float
    low: float
    high: float
    verdict: Verdict


def effects(verdicts: Sequence[ClaimVerdict]) -> list[Effect]:
    """One effect per family of claims (c01a, c01b, …: one sentence of the paper), the largest first.

    It is the least favourable deciding comparison of the family whose two cells the paper prints.
    """
    families: dict[str, list[Effect]] = {}
    for verdict in verdicts:
        part = verdict.deciding
        printed = None if part is None else printed_effect(part)
        if part is None or part.quantity is None or part.judged is None or not printed:
            continue
        low, high = part.quantity.low / printed, part.quantity.high / printed
        effect = Effect(short_text(part.requirement), 1, part.quantity.value / printed, low, high, part.judged)
        families.setdefault(verdict.claim.id.rstrip("abcdefghijklmnopqrstuvwxyz"), []).append(effect)
    worst = [replace(min(found, key=_favour), claims=len(found)) for found in families.values()]
    return sorted(worst, key=lambda effect: -effect.value)


def _favour(effect: Effect) -> tuple[int, float]:
    return (list(_COLOURS).index(effect.verdict), effect.value)


def printed_effect(part: PartVerdict) -> float | None:
    """The paper's own difference of the two compared cells; None where one of them is not printed."""
    cells = part.requirement.cells
    if len(cells) < 2:
        return None
    if isinstance(part.requirement, Equals):
        return abs(float(part.requirement.quoted)) or None
    values = [published_table(cell.table).cell(cell.method, cell.metric, dict(cell.setting)) for cell in cells]
    first, second = values
    return None if first is None or second is None else abs(first.value - second.value) or None


def summary_figure(paper: str, found: Sequence[Effect]) -> str:
    """A forest plot as SVG, light and dark by the reader's setting, readable at 390 pixels; "" without an effect."""
    if not found:
        return ""
    bottom = 44 + ROW * len(found)
    parts = [f'<line class="g" x1="{_x(tick)}" x2="{_x(tick)}" y1="30" y2="{bottom}"/>' for tick in (-2, -1, 2)]
    parts.append(f'<line class="z" x1="{_x(0)}" x2="{_x(0)}" y1="30" y2="{bottom}"/>')
    parts.append(f'<line class="p" x1="{_x(1)}" x2="{_x(1)}" y1="30" y2="{bottom}"/>')
    parts += [
        f'<text class="q" x="{_x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in range(-2, 3)
    ]
    parts.append(
        f'<text x="{LEFT}" y="18">{escape(paper)}: our effect ÷ the printed effect (dashed: as printed)</text>'
    )
    for place, effect in enumerate(found):
        parts += _row(effect, 44 + ROW * place)
    alt = f"{paper}, our effect divided by the printed one. " + "; ".join(_words(effect) for effect in found)
    height = bottom + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(alt)}" '
        f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _x(value: float) -> str:
    share = (max(-REACH, min(REACH, value)) + REACH) / (2 * REACH)
    return f"{LEFT + share * (RIGHT - LEFT):.1f}"


def _row(effect: Effect, top: float) -> list[str]:
    colour, middle = _COLOURS[effect.verdict], top + 22
    times = f" ({effect.claims} claims)" if effect.claims > 1 else ""
    room = 58 - len(effect.verdict.word) - len(times)
    shown = effect.label if len(effect.label) <= room else f"{effect.label[: room - 1]}…"
    parts = [
        f"<g><title>{escape(_words(effect))}</title>",
        f'<text x="{LEFT}" y="{top + 10}">{escape(shown + times)}</text>',
        f'<text class="{colour}" x="{RIGHT}" y="{top + 10}" text-anchor="end">{effect.verdict.word}</text>',
        f'<path class="{colour}" stroke-width="3" d="M{_x(effect.low)} {middle}H{_x(effect.high)}"/>',
    ]
    for end, sign in ((effect.low, -1), (effect.high, 1)):
        if abs(end) > REACH:
            x = float(_x(end))
            tip = f"M{x - 6 * sign:.1f} {middle - 5}L{x:.1f} {middle}L{x - 6 * sign:.1f} {middle + 5}"
            parts.append(f'<path class="{colour}" d="{tip}"/>')
    if abs(effect.value) <= REACH:
        parts.append(f'<circle class="{colour}" cx="{_x(effect.value)}" cy="{middle}" r="5"/>')
    return [*parts, "</g>"]


def _words(effect: Effect) -> str:
    bounded = math.isfinite(effect.low) and math.isfinite(effect.high)
    interval = f" [{effect.low:.2f}, {effect.high:.2f}]" if bounded else ", no interval"
    return f"{effect.label}: {effect.value:.2f}{interval}, {effect.verdict.word}"
