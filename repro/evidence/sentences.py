"""Verdicts in words: one sentence that somebody who never saw the code can check against the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from repro.evidence.cells import CellAddress
from repro.evidence.claims import Claim
from repro.evidence.comparison import CellComparison, find_table
from repro.evidence.equivalence import Equivalence
from repro.evidence.estimate import Estimate
from repro.evidence.planning import Need
from repro.evidence.published import Metric
from repro.evidence.requirements import Equals, Requirement
from repro.evidence.verdicts import Verdict

if TYPE_CHECKING:
    from repro.evidence.judgement import PartVerdict


def metric_of(address: CellAddress) -> Metric:
    """The column an address lies in; our own metrics go by their id."""
    table = find_table(address.table)
    own = Metric(label=address.metric.replace("_", " "), better="neither")
    return table.metrics.get(address.metric, own) if table else own


def row_label(address: CellAddress) -> str:
    """Method with its setting, e.g. "ScoreCAM++ (gate = tanh)"."""
    table = find_table(address.table)
    label = table.methods.get(address.method, address.method) if table else address.method
    axes = ", ".join(f"{name} = {value}" for name, value in address.setting)
    return f"{label} ({axes})" if axes else label


def number(estimate: Estimate, unit: str = "") -> str:
    """`3.1 [2.0, 4.2] %`; an unbounded interval is said in words."""
    text = f"{estimate.value:.2f}"
    if estimate.low > float("-inf") and estimate.high < float("inf"):
        text += f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    else:
        text += " (no interval)"
    return f"{text} {unit}".strip()


def requirement_text(requirement: Requirement) -> str:
    """What a part of a claim demands, e.g. "ScoreCAM++ ahead of LayerCAM in Average Drop"."""
    metric = metric_of(requirement.cells[0]).label
    if isinstance(requirement, Equals):
        if requirement.minus is None:
            return f"{metric} of {row_label(requirement.cell)} is {requirement.quoted}"
        return f"{metric}: {row_label(requirement.cell)} minus {row_label(requirement.minus)} is {requirement.quoted}"
    direction = {"lower": "lower", "higher": "higher"}[requirement.direction]
    margin = f" by more than {requirement.margin:g}" if requirement.margin else ""
    return f"{row_label(requirement.better)} {direction}{margin} than {row_label(requirement.worse)} in {metric}"


def part_text(part: PartVerdict) -> str:
    """The quantity of a part and what stands behind its interval."""
    if part.quantity is None:
        return "not measured"
    unit = metric_of(part.requirement.cells[0]).unit
    name = "difference" if len(part.requirement.cells) == 2 else "value"
    return f"{name} {number(part.quantity, unit)}, n = {part.quantity.n}, {part.quantity.method}"


def claim_sentence(claim: Claim, parts: Sequence[PartVerdict], decider: PartVerdict | None, need: Need | None) -> str:
    """Why a claim has its verdict: the deciding comparison, what is missing, and what would settle it."""
    missing = [part for part in parts if part.verdict == Verdict.not_run]
    pieces = []
    if decider is not None:
        lead = "Least favourable comparison" if len(parts) > 1 else "Measured"
        pieces.append(f"{lead}: {requirement_text(decider.requirement)} — {part_text(decider)}.")
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
    differences = list(dict.fromkeys(sentence for part in parts for sentence in part.differences))
    if differences:
        pieces.append(f"Not the paper's setting: {'; '.join(differences)}.")
    return " ".join(pieces)


def _silence(claim: Claim) -> str:
    """Why measured numbers say nothing at all."""
    if claim.kind == "value":
        return "A quoted value can only be checked on the paper's own data and network."
    if claim.kind == "gap" and float(claim.test.quoted) <= 0:
        return "The quoted difference has no direction, so it can only be checked on the paper's own data and network."
    return "The rows this compares were run on different data or networks, so the comparison means nothing."


def cell_sentence(cell: CellComparison, differences: Sequence[str], outcome: Equivalence | None) -> str:
    """Why a cell has its verdict."""
    if outcome is None:
        return "; ".join(differences) + "."
    return (
        f"Ours {cell.ours_text} against {cell.published_text}: the interval must lie within "
        f"± {outcome.margin:g} (margin) ± {outcome.rounding:g} (rounding)."
    )
