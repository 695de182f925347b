"""What a notebook talks to: it collects rows and figures of one table and saves them as a record."""

from __future__ import annotations

import ast
import hashlib
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure as MatplotlibFigure

from repro.catalogue import Preset, Table
from repro.evidence.comparison import CellComparison, compare
from repro.evidence.provenance import (
    Provenance,
    git_state,
    inputs_hash,
    library_versions,
    peak_memory,
)
from repro.evidence.published import find_table, own_label
from repro.evidence.record import Figure, Record, Row, prediction_for
from repro.execution import device_name, use_one_thread
from repro.files import write_bytes
from repro.parameters import check_values, is_trial, parameters_hash, read_parameters, unknown_name
from repro.project import UserError
from repro.report.html import bullet_list, comparison_table, key_value_table
from repro.report.plots import png_bytes, use_house_style
from repro.report.verdict_views import notebook_verdicts
from repro.stored_runs import training_provenances

T = TypeVar("T")
INJECTED = "# Parameters\n"
"""How papermill begins the cell it injects."""


class Experiment:
    """One execution of one notebook.

    Attributes:
        table: the table or figure being reproduced.
        parameters: the checked values of the parameters cell.
        preset: the preset they name.
        trial: whether they are anything but exactly that preset's, so that the record is kept apart and not judged.
        rows: the measured numbers so far.
    """

    def __init__(self, table: Table, parameters: dict[str, Any]) -> None:
        self.table = table
        self.parameters = parameters
        self.preset: Preset = parameters["preset"]
        self.trial = is_trial(table, parameters)
        self.rows: list[Row] = []
        self._samples: dict[str, list[float]] = {}
        self._figures: list[Figure] = []
        self._pictures: dict[str, bytes] = {}
        self._readings: dict[str, str] = {}
        self._findings: list[str] = []
        self._deviations: list[str] = []
        self._data: dict[str, str] = {}
        self._image_ids: dict[str, list[str]] = {}
        self._runs: list[str] = []
        self._skipped = 0
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    @classmethod
    def open(cls, id: str, namespace: Mapping[str, Any]) -> Experiment:
        """Start the experiment of notebook `id`; `namespace` is the notebook's `globals()`.

        The values of the parameters cell are checked once more, so that a value changed in JupyterLab gets the same
        clear message as one given to `repro run`. Shows where the code stands and on what it runs.

        Raises:
            UserError: unknown id, a parameter of the wrong type, or one injected by papermill that is not declared.
        """
        table = Table(id)
        declared = read_parameters(table)
        names = [parameter.name for parameter in declared]
        unknown = [name for name in _injected(namespace) if name not in names]
        if unknown:
            raise UserError("\n".join(f"{id}: {unknown_name(name, names)}" for name in unknown))
        values = {parameter.name: namespace[parameter.name] for parameter in declared if parameter.name in namespace}
        parameters = check_values(declared, values, id)
        if "preset" not in parameters:
            raise UserError(f"{id}: the parameters cell must name its preset")
        use_house_style()
        use_one_thread()  # this is a notebook's own process: what it computes outside the run store counts, too
        experiment = cls(table, parameters)
        experiment._show_setup()
        return experiment

    @property
    def folder(self) -> Path:
        """Where figures and the record go once `save` is called; nothing is written before."""
        return self.table.report(self.preset, self.trial)

    def uses_data(self, name: str, manifest: str, skipped: int = 0) -> None:
        """Note a data set by its manifest hash, and how many damaged images were left out of it."""
        self._data[name] = manifest
        self._skipped += skipped

    def evaluates(self, name: str, ids: Sequence[str]) -> None:
        """Note the images of `name` (data set/split), in order, that values per image belong to.

        Only values of the same images can be paired.
        """
        self._image_ids[name] = list(ids)

    def uses_run(self, *keys: str) -> None:
        """Note trainings or explanations of the run store that the numbers rest on."""
        self._runs += [key for key in dict.fromkeys(keys) if key not in self._runs]

    def reads(self, **readings: str) -> None:
        """Note readings in force; dots of the id are written as double underscores."""
        self._readings.update({name.replace("__", "."): value for name, value in readings.items()})

    def deviates(self, sentence: str) -> None:
        """Note one difference from the paper, with its reason."""
        self._deviations.append(sentence)

    def differs(self, **actual: Any) -> None:
        """Note a deviation for every named fact that is not what the published table's `setup` says."""
        table = find_table(self.table.id)
        for name, value in actual.items():
            printed = table.setup.get(name) if table else None
            if printed is not None and printed != value:
                self.deviates(f"{name}: {value} here, {printed} in the paper.")

    def add(self, rows: Iterable[Row], samples: Mapping[str, Iterable[float]] | None = None) -> None:
        """Add measured rows, and the values per image behind them (keys `method|metric|seed`)."""
        self.rows += list(rows)
        self._samples.update({key: [float(value) for value in values] for key, values in (samples or {}).items()})

    def figure(self, figure: MatplotlibFigure, name: str, title: str, alt: str) -> None:
        """Keep a figure to be saved as `<name>.png`, show it with its alternative text, and close it.

        Raises:
            ValueError: the alternative text or the title is empty.
        """
        if not alt.strip() or not title.strip():
            raise ValueError(f"figure '{name}' needs a title and an alternative text that says what one sees")
        picture = self._pictures[f"{name}.png"] = png_bytes(figure)
        plt.close(figure)
        self._figures.append(
            Figure(file=f"{name}.png", title=title, alt=alt, sha256=hashlib.sha256(picture).hexdigest())
        )
        display(Image(data=picture, format="png", alt=alt), metadata={"image/png": {"alt": alt}})

    def record(self) -> Record:
        """The record as it stands."""
        commit, dirty = git_state()
        digest = parameters_hash(self.parameters)
        trainings = training_provenances(self._runs)
        known = [one.wall_seconds for one in trainings.values()]
        device_memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        provenance = Provenance(
            commit=commit,
            dirty=dirty,
            inputs_hash=inputs_hash(self.table, digest),
            data=self._data,
            runs=self._runs,
            trainings=trainings,
            libraries=library_versions(),
            python=platform.python_version(),
            device=device_name(),
            threads=torch.get_num_threads(),
            started=self._started.isoformat(timespec="seconds"),
            wall_seconds=time.monotonic() - self._clock,
            stored_seconds=sum(known) if len(known) == len(self._runs) else None,
            peak_memory_bytes=peak_memory(),
            peak_device_memory_bytes=device_memory,
        )
        return Record(
            id=self.table.id,
            title=self.table.title,
            preset=self.preset,
            trial=self.trial,
            run_id=os.environ.get("REPRO_RUN_ID", "interactive"),
            parameters=self.parameters,
            parameters_hash=digest,
            readings=self._readings,
            rows=self.rows,
            samples=self._samples,
            image_ids=self._image_ids,
            figures=self._figures,
            findings=self._findings,
            deviations=self._deviations,
            skipped_images=self._skipped,
            predicted=prediction_for(self.table.id, self.preset, digest),
            provenance=provenance,
        )

    def compare(self) -> list[CellComparison]:
        """Our rows so far beside the printed cells."""
        return compare(self.record())

    def show_comparison(self, caption: str, metrics: Sequence[str] | None = None) -> None:
        """Show paper and ours side by side, for all metrics or the named ones."""
        cells = [cell for cell in self.compare() if metrics is None or cell.metric in metrics]
        display(HTML(comparison_table(caption, cells)))

    def show_verdicts(self) -> None:
        """Show what this run, with the saved records it is compared with, says on the paper's claims.

        Claims that reach into other tables use the records those left under the same preset. A smoke run shows one
        plain sentence instead.
        """
        display(HTML(notebook_verdicts(self.record())))

    def find(self, sentences: Iterable[str]) -> None:
        """Note and show findings: sentences made from measured numbers by rule, never typed."""
        found = list(sentences)
        self._findings += found
        display(HTML(bullet_list(found)))

    def labelled(self, values: Mapping[str, T]) -> dict[str, T]:
        """The same mapping with method ids replaced by the names the table prints."""
        table = find_table(self.table.id)
        names = table.methods if table else {}
        return {names.get(method, own_label(method)): value for method, value in values.items()}

    def show_deviations(self) -> None:
        """Show what differs from the paper, as noted by `deviates`."""
        display(HTML(bullet_list(self._deviations or ["No deviation from the paper's setting was noted."])))

    def check(self, within: float = 0.4) -> None:
        """Print one line per metric; `pytest --nbval` compares them with what is stored under this cell.

        A number is the mean magnitude of the metric over its rows. Where this run has the same lines and every number
        lies within the share `within` of the stored one, the stored text itself is printed, since another processor
        adds in another order and a short training carries that far; anywhere else this run's own numbers.
        """
        stored = self.table.read().pinned
        print(pinned_or_own(stored, main_numbers(self.rows, len(self._figures)), within))

    def save(self) -> None:
        """Write the figures, then `result.json`; the last cell of every notebook.

        Until here nothing of an earlier run was touched. A figure without its record does not pass `load_record`.

        Raises:
            ValueError: nothing was measured and nothing was drawn.
        """
        if not self.rows and not self._figures:
            raise ValueError(f"{self.table.id}: nothing was measured, so there is no record to save")
        record = self.record()
        for name, picture in self._pictures.items():
            write_bytes(self.folder / name, picture)
        record.save(self.folder)
        print(
            f"record saved: {len(record.rows)} rows, {len(record.figures)} figures, "
            f"{record.provenance.wall_seconds:.1f} s"
        )

    def _show_setup(self) -> None:
        commit, dirty = git_state()
        facts = {
            "preset": f"{self.preset}, with other values: a trial" if self.trial else self.preset,
            "commit": "outside a checkout" if commit is None else commit[:10] + (" with changes" if dirty else ""),
            "device": device_name(),
            "threads": torch.get_num_threads(),
            "libraries": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
            "parameters": ", ".join(f"{name} = {value!r}" for name, value in self.parameters.items()),
        }
        display(HTML(key_value_table("Set-up of this run", facts)))


def _injected(namespace: Mapping[str, Any]) -> list[str]:
    """Names that papermill's injected cell assigned, as IPython's history of inputs has it."""
    sources = [text for text in namespace.get("In", ()) if text.startswith(INJECTED)]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def main_numbers(rows: Sequence[Row], figures: int) -> str:
    """One line per metric with its rows' mean magnitude, and the number of figures."""
    lines = []
    for metric in dict.fromkeys(row.metric for row in rows):
        values = [abs(row.value) for row in rows if row.metric == metric]
        lines.append(f"{metric}, {len(values)} rows: {math.fsum(values) / len(values):.3g}")
    return "\n".join([*lines, f"figures: {figures}"])


def pinned_or_own(stored: str, own: str, within: float) -> str:
    """`stored` where `own` has the same lines and numbers within that share of it, else `own`."""

    def parts(text: str) -> tuple[list[str], list[float]]:
        pairs = [line.rpartition(": ") for line in text.splitlines()]
        return [name for name, _, _ in pairs], [float(value) for _, _, value in pairs]

    (names, pinned), (own_names, values) = parts(stored), parts(own)
    agree = all(abs(value - pin) <= within * abs(pin) for value, pin in zip(values, pinned, strict=False))
    return stored if names == own_names and agree else own
