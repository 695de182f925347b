"""What we ourselves state in the README, machine-readable (`docs/stated.yaml`), held against the records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from repro.errors import UserError
from repro.evidence.claims import Claim, load_claims
from repro.evidence.judgement import ClaimVerdict, Judge
from repro.evidence.published import PAPERS
from repro.evidence.verdicts import Verdict
from repro.files import write_text
from repro.vocabulary import Preset

Stated = dict[Preset, dict[str, Literal["supported", "contradicted", "inconclusive"]]]
_OPPOSITE = {Verdict.supported: Verdict.contradicted, Verdict.contradicted: Verdict.supported}
_HEADER = """# What the README states about the claims, per preset: claim id → verdict over the judged comparisons.
# Written by `repro verdicts --state`; `pytest --claims reports/<preset>` fails where the records say the opposite.
"""


@dataclass(frozen=True)
class StatedCheck:
    """One statement beside what the records say today."""

    claim: Claim
    stated: Verdict
    found: ClaimVerdict

    @property
    def contradicted(self) -> bool:
        """Whether the records say the opposite of what we state."""
        return self.found.judged is not None and _OPPOSITE.get(self.stated) == self.found.judged

    @property
    def confirmed(self) -> bool:
        """Whether the records say what we state."""
        return self.found.judged == self.stated


def load_stated(path: Path) -> Stated:
    """The statements of a file.

    Raises:
        UserError: the file is absent, or names an unknown preset, claim or verdict.
    """
    try:
        stated = TypeAdapter(Stated).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        raise UserError(f"{path.name}: no such file; `repro verdicts --state` writes it") from None
    except ValidationError as error:
        raise UserError(f"{path.name}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    known = _claims()
    unknown = sorted({id for claims in stated.values() for id in claims} - set(known))
    if unknown:
        raise UserError(f"{path.name}: no claims of these ids: {', '.join(unknown)}")
    return stated


def check_stated(stated: Stated, preset: Preset, judge: Judge) -> list[StatedCheck]:
    """Every statement about one preset beside today's verdict."""
    claims = _claims()
    return [
        StatedCheck(claims[id], Verdict(verdict), judge.claim(claims[id]))
        for id, verdict in stated.get(preset, {}).items()
    ]


def write_stated(path: Path, preset: Preset, judge: Judge) -> int:
    """Replace one preset's statements by today's verdicts; returns how many there are.

    Raises:
        UserError: the preset is smoke, which never gets a verdict.
    """
    if preset == "smoke":
        raise UserError("a smoke run gives no verdict, so there is nothing to state: use --preset quick or paper")
    stated = load_stated(path) if path.exists() else {}
    found = {id: judged.value for id, claim in _claims().items() if (judged := judge.claim(claim).judged)}
    merged = {**stated, preset: found}
    write_text(path, _HEADER + yaml.safe_dump(merged, sort_keys=True))
    return len(found)


def _claims() -> dict[str, Claim]:
    return {claim.id: claim for paper in PAPERS for claim in load_claims(paper)}
