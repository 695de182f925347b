"""Speed and memory beside other implementations: what `benchmarks/` measured, kept with the machine it ran on."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from repro.evidence.provenance import git_state
from repro.execution import device_name, processor_name
from repro.files import write_json
from repro.project import project_root

SCHEMA_VERSION: Literal[1] = 1
RatioIs = Literal["peer / ours", "ours / peer", "ours"]
_LIBRARIES = ("torch", "torchvision", "numpy", "captum", "grad-cam", "torchcam", "opencv-python-headless")


class Comparison(BaseModel):
    """One quantity of ours beside the same quantity of another implementation, or beside a fixed limit."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    ours: float
    """Median over the rounds."""
    peer: float | None
    """Median of the other implementation, None where there is only a limit."""
    peer_label: str
    unit: str
    ratio: float
    """Median of the rounds' ratios, or the quantity itself where there is only a limit."""
    ratio_is: RatioIs
    """"peer / ours" should be large and its bar is a lower one; the other two should be small."""
    ratio_low: float | None
    ratio_high: float | None
    """Smallest and largest ratio over the rounds, None where there was one round."""
    rounds: int
    threads: int
    bar: float | None
    """The ratio demanded before anything was measured; None where none was."""
    met: bool | None
    """Whether the ratio reaches its bar; None without one."""

    @model_validator(mode="after")
    def _honest(self) -> Comparison:
        if self.met != _met(self.ratio, self.ratio_is, self.bar):
            raise ValueError(f"met is {self.met}, which does not follow from ratio {self.ratio} and bar {self.bar}")
        return self


class Environment(BaseModel):
    """What a timing depends on."""

    model_config = ConfigDict(extra="forbid")

    device: str
    processor: str
    libraries: dict[str, str]
    """Versions; a peer that is missing was not installed."""
    commit: str | None
    dirty: bool | None
    date: str
    """UTC day."""


class SpeedRecord(BaseModel):
    """What one benchmark found; read back and shown by the README."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    environment: Environment
    comparisons: list[Comparison]
    details: dict[str, Any]
    """Everything the benchmark measured, in its own form."""

    def save(self, *, quick: bool) -> Path:
        """Write `benchmarks/results/NAME.json`, which is committed; a quick trial goes to the ignored `output/`."""
        path = project_root() / "benchmarks" / ("output" if quick else "results") / f"{self.name}.json"
        write_json(path, self.model_dump(mode="json"))
        return path


def compared(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float] | None,
    peer_label: str,
    *,
    unit: str,
    threads: int,
    ratio_is: RatioIs = "peer / ours",
    bar: float | None = None,
) -> Comparison:
    """One comparison from measurements that took turns: entry i of both was measured in round i.

    Raises:
        ValueError: no rounds, or not as many of one side as of the other.
    """
    if not ours or (peer is not None and len(peer) != len(ours)):
        raise ValueError(f"{name}: {len(ours)} rounds of ours, {0 if peer is None else len(peer)} of {peer_label}")
    ratios = [_ratio(one, other, ratio_is) for one, other in zip(ours, peer or ours, strict=True)]
    ratio = statistics.median(ratios)
    several = len(ratios) > 1
    return Comparison(
        name=name,
        ours=statistics.median(ours),
        peer=None if peer is None else statistics.median(peer),
        peer_label=peer_label,
        unit=unit,
        ratio=ratio,
        ratio_is=ratio_is,
        ratio_low=min(ratios) if several else None,
        ratio_high=max(ratios) if several else None,
        rounds=len(ratios),
        threads=threads,
        bar=bar,
        met=_met(ratio, ratio_is, bar),
    )


def _ratio(ours: float, peer: float, ratio_is: RatioIs) -> float:
    if ratio_is == "ours":
        return ours
    return peer / ours if ratio_is == "peer / ours" else ours / peer


def _met(ratio: float, ratio_is: RatioIs, bar: float | None) -> bool | None:
    if bar is None:
        return None
    return ratio >= bar if ratio_is == "peer / ours" else ratio <= bar


def environment(*, cuda: bool = False) -> Environment:
    """This machine, its libraries and the state of the code, without names of people or hosts."""
    commit, dirty = git_state()
    installed = {found.metadata["Name"].lower() for found in importlib.metadata.distributions()}
    return Environment(
        device=device_name() if cuda else "CPU",
        processor=processor_name(),
        libraries={name: importlib.metadata.version(name) for name in _LIBRARIES if name in installed},
        commit=commit,
        dirty=dirty,
        date=datetime.now(UTC).date().isoformat(),
    )
