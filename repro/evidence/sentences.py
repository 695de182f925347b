"""Verdicts in words: one sentence that somebody who never saw the code can check against the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repro.evidence.claims import Claim
from repro.evidence.comparison import CellComparison, Need, find_table
from repro.evidence.decisions import Equivalence, Verdict
from repro.evidence.intervals import Estimate
from repro.evidence.published import CellAddress, Metric, own_label
from repro.evidence.requirements import Equals, Requirement
from repro.evidence.settings import Difference

# The verdict on one requirement of a claim.


@dataclass(frozen=True)
class PartVerdict:
    """One requirement of a claim.

    `verdict` speaks of the paper's own setting. Where that is `not_comparable`, `in_our_data` is what our data say
    on the same ordering, None where nothing can be said (values, or two tables run on different data).
    """

    requirement: Requirement
    verdict: Verdict
    in_our_data: Verdict | None
    quantity: Estimate | None
    differences: tuple[Difference, ...] = ()

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


def metric_of(address: CellAddress) -> Metric:
    """The column an address lies in; our own metrics go by their id."""
    table = find_table(address.table)
    own = Metric(label=address.metric.replace("_", " "), better="neither")
    return table.metrics.get(address.metric, own) if table else own


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
    """`3.1 [2.0, 4.2] %`; an unbounded interval is said in words."""
    text = f"{estimate.value:.2f}"
    if estimate.low > float("-inf") and estimate.high < float("inf"):
        text += f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    else:
        text += " (no interval)"
    return f"{text} {unit}".strip()


def requirement_text(requirement: Requirement) -> str:
    """What a part of a claim demands, e.g. "ScoreCAM++ lower than LayerCAM in Average Drop"."""
    names, shared = _side_by_side(_compared(requirement))
    metric = metric_of(requirement.cells[0]).label + (f" ({shared})" if shared else "")
    if isinstance(requirement, Equals):
        return f"{metric} of {names[0]}{f' minus that of {names[1]}' if names[1:] else ''} is {requirement.quoted}"
    margin = f" by more than {requirement.margin:g}" if requirement.margin else ""
    return f"{names[0]} {requirement.direction}{margin} than {names[1]} in {metric}"


def short_text(requirement: Requirement) -> str:
    """The row the paper puts ahead, its rival and the metric, e.g. "ScoreCAM++ vs LayerCAM, Average Drop"."""
    names, shared = _side_by_side(_compared(requirement))
    if isinstance(requirement, Equals) and metric_of(requirement.cell).better == "lower":
        names = names[::-1]  # the larger error comes first in a quoted gap
    return ", ".join([" vs ".join(names), metric_of(requirement.cells[0]).label, *([shared] if shared else [])])


def _compared(requirement: Requirement) -> Sequence[CellAddress]:
    return requirement.cells if isinstance(requirement, Equals) else (requirement.better, requirement.worse)


def part_text(part: PartVerdict) -> str:
    """The quantity of a part and what stands behind its interval."""
    if part.quantity is None:
        return "not measured"
    unit = metric_of(part.requirement.cells[0]).unit
    pair = "difference" if isinstance(part.requirement, Equals) else "advantage"
    name = pair if len(part.requirement.cells) == 2 else "value"
    return f"{name} {number(part.quantity, unit)}, n = {part.quantity.n}, {part.quantity.method}"


def differences_text(differences: Sequence[Difference]) -> str:
    """E.g. "data set scenes (paper: cub, ilsvrc); network small_cnn (paper: vgg16)", each name once."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for difference in differences:
        printed = grouped.setdefault((difference.name, difference.run), [])
        if difference.paper not in printed:
            printed.append(difference.paper)
    return "; ".join(f"{name} {run} (paper: {', '.join(printed)})" for (name, run), printed in grouped.items())


def claim_sentence(claim: Claim, parts: Sequence[PartVerdict], decider: PartVerdict | None, need: Need | None) -> str:
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
    if need is not None:
        pieces.append(need.sentence)
    differences = [difference for part in parts for difference in part.differences]
    if differences:
        pieces.append(f"Not the paper's setting: {differences_text(differences)}.")
    return " ".join(pieces)


def _silence(claim: Claim) -> str:
    """Why measured numbers say nothing at all."""
    if claim.kind == "value":
        return "A quoted value can only be checked on the paper's own data and network."
    if claim.kind == "gap" and float(claim.test.quoted) <= 0:
        return "The quoted difference has no direction, so it can only be checked on the paper's own data and network."
    return "The rows this compares were run on different data or networks, so the comparison means nothing."


def cell_sentence(cell: CellComparison, differences: Sequence[Difference], outcome: Equivalence | None) -> str:
    """Why a cell has its verdict."""
    if outcome is None:
        return f"Not the paper's setting: {differences_text(differences)}."
    return (
        f"Ours {cell.ours_text} against {cell.published_text}: the interval must lie within "
        f"± {outcome.margin:g} (margin) ± {outcome.rounding:g} (rounding)."
    )
