"""Rows of a record and the values behind them: what every study hands to `Experiment.add`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting


@dataclass
class RowCollector:
    """Rows, and per row the values (one per image, say) that it is made of.

    Example:
        >>> found = RowCollector()
        >>> found.add("ega", "corloc_error", 50.0, dataset="scenes", seed=0, samples=[0.0, 100.0], unit="%")
        >>> found.rows[0].n, found.samples
        (2, {'ega|corloc_error|0': [0.0, 100.0]})
    """

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    """By `sample_key`."""

    def add(
        self,
        method: str,
        metric: str,
        value: float,
        *,
        dataset: str,
        network: str = "",
        seed: int | None = None,
        setting: Setting | None = None,
        samples: Sequence[float] | None = None,
        n: int | None = None,
        unit: str = "",
    ) -> None:
        """One number; see `Row` for the fields. `n` is the number of samples unless given."""
        setting = setting or {}
        self.rows.append(
            Row(
                method=method,
                metric=metric,
                value=value,
                dataset=dataset,
                network=network,
                seed=seed,
                setting=setting,
                n=len(samples) if n is None and samples is not None else n,
                unit=unit,
            )
        )
        if samples is not None:
            self.samples[sample_key(method, metric, seed, setting)] = list(samples)
