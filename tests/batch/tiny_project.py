"""A project of tiny notebooks in a temporary folder, run through the real worker process and kernel."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """preset: Preset = "smoke"  # which preset
images: PositiveInt = 4  # number of images
rate: PositiveFloat = 0.5  # a learning rate
method: ExplainedClass = "predicted"  # which class
seeds: list[NonNegativeInt] = [0]  # one run each"""

# A notebook of the real shape, but without the import of torch, which would cost seconds in every test.
SAVE = """
import os
from repro.catalogue import Table
from repro.evidence.provenance import Provenance, inputs_hash
from repro.evidence.record import Record, Row
from repro.parameters import is_trial, parameters_hash
values = {"preset": preset, "images": images, "rate": rate, "method": method, "seeds": seeds}
digest = parameters_hash(values)
provenance = Provenance(commit=None, dirty=None, inputs_hash=inputs_hash(table, digest), libraries={}, python="3",
                        device="test", threads=1, started="now", wall_seconds=0.0, peak_memory_bytes=1)
row = Row(method=method, metric="images", value=images, dataset="none")
trial = is_trial(table, values)
Record(id=table.id, title="t", preset=preset, trial=trial, run_id=os.environ["REPRO_RUN_ID"], parameters=values,
       parameters_hash=digest, rows=[row], provenance=provenance).save(table.report(preset, trial))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A function that adds a notebook: `project("ega/table1", "print(1)")`."""
    monkeypatch.setenv("REPRO_PROJECT", str(tmp_path))
    monkeypatch.delenv("REPRO_REPORTS", raising=False)

    def add(id: str, body: str) -> Path:
        cells = [
            new_markdown_cell(f"# {id}\n\nAn equation: $y^c = \\frac{{1}}{{2}}$."),
            new_code_cell(
                "from pydantic import NonNegativeInt, PositiveFloat, PositiveInt\n"
                "from repro.vocabulary import ExplainedClass, Preset\nimport repro"
            ),
            new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
            new_code_cell(f"from repro.catalogue import Table\ntable = Table({id!r})"),
            new_code_cell(body),
            new_code_cell(SAVE),
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "title": id}
        path = tmp_path / "notebooks" / f"{id}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
        return path

    return add
