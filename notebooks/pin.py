"""Stores the smoke run's main numbers under each notebook's cell tagged `check`: python notebooks/pin.py [ID]...

The numbers are those of the valid smoke records under `reports/smoke` (`make report` makes them).
"""

import json
import sys

from repro.catalogue import select
from repro.evidence.record import load_record
from repro.files import write_text
from repro.report.experiment import main_numbers


def main() -> None:
    for table in select(sys.argv[1:]):
        record = load_record(table.report("smoke"))
        notebook = json.loads(table.notebook.read_text(encoding="utf-8"))
        cell = next(cell for cell in notebook["cells"] if "check" in cell["metadata"].get("tags", ()))
        text = main_numbers(record.rows, len(record.figures)) + "\n"
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}]
        cell["execution_count"] = 1  # nbval compares only what was run
        write_text(table.notebook, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(table.id)


if __name__ == "__main__":
    main()
