"""Verdicts in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from repro.catalogue import Preset, nearest
from repro.errors import UserError
from repro.evidence.judgement import SMOKE_REASON, ClaimVerdict, Judge
from repro.evidence.published import PAPERS, Paper
from repro.evidence.record import records_in
from repro.evidence.stated import write_stated
from repro.project import project_root, reports_root
from repro.report.verdict_views import counts


def print_verdicts(preset: Preset, papers: Sequence[str], console: Console) -> None:
    """Print every claim with its answers, paper by paper, then the counts; one sentence for smoke.

    Raises:
        UserError: an unknown paper.
    """
    chosen = [_paper(name) for name in papers] or list(PAPERS)
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
        own = ", ".join(f"{count} {verdict.word}" for verdict, count in counts(v.verdict for v in verdicts))
        console.print(f"  in the paper's setting: {own}", markup=False)
        judged = ", ".join(f"{n} {verdict.word}" for verdict, n in counts(v.judged for v in verdicts if v.scope))
        if judged:
            console.print(f"  in our data, or over the measured part: {judged}", markup=False)


def state_verdicts(preset: Preset) -> str:
    """Write today's verdicts of a preset to `docs/stated.yaml`; returns what was done in one line."""
    target = project_root() / "docs" / "stated.yaml"
    number = write_stated(target, preset, Judge(records_in(reports_root() / preset)))
    return f"{number} statements about the {preset} preset written to docs/{target.name}"


def _print_claim(verdict: ClaimVerdict, console: Console) -> None:
    console.print(f"  {verdict.claim.id}  {verdict.label}", markup=False)
    console.print(f"      “{verdict.claim.quote}”", markup=False, style="dim")
    console.print(f"      {verdict.reason}", markup=False)


def _paper(name: str) -> Paper:
    for paper in PAPERS:
        if paper == name:
            return paper
    raise UserError(f"--paper {name}: {nearest(name, PAPERS)} (allowed: {', '.join(PAPERS)})")
