"""Verdicts in words: one sentence that somebody who never saw the code can check against the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repro.evidence.claims import Claim, Equals, Exceeds, Requirement
from repro.evidence.comparison import ONE_TRAINING, CellComparison
from repro.evidence.decisions import Region, Verdict, plan
from repro.evidence.published import CellAddress, find_metric, find_table, own_label, rounding_interval
from repro.evidence.settings import Difference
from repro.evidence.statistics import Estimate


@dataclass(frozen=True)
class PartVerdict:
    """One requirement of a claim.

    `verdict` speaks of the paper's own setting. Where that is `not_comparable`, `in_our_data` is what our data say
    on the same ordering, None where nothing can be said (values, or two tables run on different data). `region` is
    what `quantity` is judged by, as one of `family` parts; None where it is not judged.
    """

    requirement: Requirement
    verdict: Verdict
    in_our_data: Verdict | None = None
    quantity: Estimate | None = None
    region: Region | None = None
    differences: tuple[Difference, ...] = ()
    family: int = 1

    @property
    def is_quoted(self) -> bool:
        """Whether it is about a number the text quotes, not about an ordering."""
        return isinstance(self.requirement, Equals)

    @property
    def judged(self) -> Verdict | None:
        """The verdict by measured numbers, in whichever setting; None where there is none."""
        if self.verdict in (Verdict.not_comparable, Verdict.not_run):
            return self.in_our_data
        return self.verdict


def row_label(address: CellAddress) -> str:
    """Method with its setting, e.g. "ScoreCAM++ (gate = tanh)"."""
    axes = ", ".join(f"{name} = {value}" for name, value in address.setting)
    return f"{_method(address)} ({axes})" if axes else _method(address)


def _method(address: CellAddress) -> str:
    table = find_table(address.table)
    label = (table.methods.get(address.method) if table else None) or own_label(address.method)
    return label.removesuffix(" (ours)")  # printed by the paper of itself; here it would read as our run


def _side_by_side(rows: Sequence[CellAddress]) -> tuple[list[str], str]:
    """Names of compared rows, and what their settings share, so that it is said once."""
    shared = [axis for axis in rows[0].setting if all(axis in row.setting for row in rows)]
    names = []
    for row in rows:
        own = ", ".join(f"{name} = {value}" for name, value in row.setting if (name, value) not in shared)
        names.append(f"{_method(row)} ({own})" if own else _method(row))
    if len(set(names)) < len(names):  # one row of two tables
        names = [f"{name} of {row.table.partition('/')[2]}" for name, row in zip(names, rows, strict=True)]
    return names, ", ".join(f"{name} = {value}" for name, value in shared)


def number(estimate: Estimate, unit: str = "") -> str:
    """`3.1 [2.0, 4.2] %`, the one way an interval is written in a sentence; an unbounded one is said in words."""
    ends = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if estimate.bounded else " (no interval)"
    return f"{estimate.value:.2f}{ends} {unit}".strip()


def requirement_text(requirement: Requirement) -> str:
    """What a part of a claim demands, e.g. "ScoreCAM++ lower than LayerCAM in Average Drop"."""
    names, shared = _side_by_side(_compared(requirement))
    metric = find_metric(requirement.cells[0]).label + (f" ({shared})" if shared else "")
    if isinstance(requirement, Equals):
        return f"{metric} of {names[0]}{f' minus that of {names[1]}' if names[1:] else ''} is {requirement.quoted}"
    margin = f" by more than {requirement.margin:g}" if requirement.margin else ""
    return f"{names[0]} {requirement.direction}{margin} than {names[1]} in {metric}"


def short_text(requirement: Requirement) -> str:
    """The row the paper puts ahead, its rival and the metric, e.g. "ScoreCAM++ vs LayerCAM, Average Drop"."""
    names, shared = _side_by_side(_compared(requirement))
    if isinstance(requirement, Equals) and find_metric(requirement.cell).better == "lower":
        names = names[::-1]  # the larger error comes first in a quoted gap
    return ", ".join([" vs ".join(names), find_metric(requirement.cells[0]).label, *([shared] if shared else [])])


def _compared(requirement: Requirement) -> Sequence[CellAddress]:
    return requirement.cells if isinstance(requirement, Equals) else (requirement.better, requirement.worse)


def part_text(part: PartVerdict) -> str:
    """The quantity of a part and what stands behind its interval."""
    if part.quantity is None:
        return "not measured"
    unit = find_metric(part.requirement.cells[0]).unit
    pair = "difference" if isinstance(part.requirement, Equals) else "advantage"
    text = f"{pair if len(part.requirement.cells) == 2 else 'value'} {number(part.quantity, unit)}"
    if isinstance(part.requirement, Exceeds) and part.quantity.bound is not None:
        text += f", P(better) {100 * part.quantity.confidence(part.requirement.margin):.1f} %"
    return f"{text}, n = {part.quantity.n}, {part.quantity.method}"


def differences_text(differences: Sequence[Difference]) -> str:
    """E.g. "data set scenes (paper: cub, ilsvrc); network small_cnn (paper: vgg16)", each name once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        printed = grouped.setdefault((difference.name, difference.run), [])
        if difference.paper not in printed:
            printed.append(difference.paper)
    return "; ".join(f"{name} {run} (paper: {', '.join(printed)})" for (name, run), printed in grouped.items())


def claim_sentence(
    claim: Claim, parts: Sequence[PartVerdict], decider: PartVerdict | None, this_network: Verdict | None
) -> str:
    """Why a claim has its verdict: the deciding comparison, what is missing, and what would settle it."""
    missing = [part for part in parts if part.verdict == Verdict.not_run]
    pieces = []
    if decider is not None:
        lead = "Least favourable comparison" if len(parts) > 1 else "Measured"
        asked = " (only its direction is asked here)" if decider.in_our_data and decider.is_quoted else ""
        pieces.append(f"{lead}: {requirement_text(decider.requirement)}{asked} — {part_text(decider)}.")
    elif len(missing) == len(parts):
        pieces.append("No record holds the rows this claim needs.")
    else:
        pieces.append(_silence(claim))
    if missing and len(missing) < len(parts):
        names = list(dict.fromkeys(row_label(cell) for part in missing for cell in part.requirement.cells))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        pieces.append(f"{len(missing)} of {len(parts)} comparisons were not run (they involve {shown}).")
    if this_network is not None:
        pieces.append(f"One training decides nothing on a way of training; this network: {this_network.label}.")
    if decider is not None and decider.judged == Verdict.inconclusive:
        pieces.append(open_sentence(decider))
    differences = [difference for part in parts for difference in part.differences]
    if differences:
        pieces.append(f"Not the paper's setting: {differences_text(differences)}.")
    return " ".join(pieces)


FEW_SEEDS = 3


def open_sentence(part: PartVerdict) -> str:
    """Why a part is undecided, and what would settle it by the model that left it so."""
    quantity, region = part.quantity, part.region
    assert quantity is not None and region is not None
    if quantity.doubt:
        more = f" Run at least {FEW_SEEDS} seeds." if ONE_TRAINING in quantity.doubt else ""
        return f"Undecided because of {quantity.doubt}.{more}"
    distance = region.distance(quantity.value)
    if distance < region.matters:
        inside = quantity.bounded and max(abs(quantity.low), abs(quantity.high)) < region.matters
        seen = "The whole interval lies" if inside else "The effect seen lies"
        return f"{seen} within ± {region.matters:g}, the smallest that matters here: as seen, no number settles it."
    needed = plan(quantity, region, part.family)
    counts = [f"{count:,} {unit}" for count, unit in ((needed.seeds, "seeds"), (needed.images, "test images")) if count]
    if not counts:
        return "Neither more seeds nor more images alone would settle it at the effect seen so far."
    cannot = " (no number of seeds would, on these images)" if _images_alone(quantity, needed.seeds) else ""
    return f"About {' or '.join(counts)} in all would settle it{cannot} (80 % power at the effect seen so far)."


def _images_alone(quantity: Estimate, seeds: int | None) -> bool:
    return seeds is None and quantity.spread is not None and quantity.spread.seeds > 1


def _silence(claim: Claim) -> str:
    """Why measured numbers say nothing at all."""
    if claim.kind == "value":
        return "A quoted value can only be checked on the paper's own data and network."
    if claim.kind == "gap" and _has_no_direction(claim):
        return "The quoted difference has no direction, so it can only be checked on the paper's own data and network."
    return "The rows this compares were run on different data or networks, so the comparison means nothing."


def _has_no_direction(claim: Claim) -> bool:
    return any(isinstance(part, Equals) and float(part.quoted) <= 0 for part in claim.requirements)


def cell_sentence(cell: CellComparison, differences: Sequence[Difference], ours: Estimate, margin: float) -> str:
    """Why a cell has its verdict."""
    if differences or cell.published is None:
        return f"Not the paper's setting: {differences_text(differences)}."
    low, high = rounding_interval(cell.published.printed)
    doubt = f" Undecided because of {ours.doubt}." if ours.doubt else ""
    return (
        f"Ours {cell.ours_text} against {cell.published_text}: the interval must lie within "
        f"± {margin:g} (margin) ± {(high - low) / 2:.2g} (rounding).{doubt}"
    )
