"""Files of the project: numbers take no more room than they need, and nothing else changes."""

import json
from pathlib import Path

from repro.files import write_json


def test_lists_of_numbers_are_one_line_and_text_stays(tmp_path: Path) -> None:
    value = {"samples": [1.0, -2.5e-07, 3], "text": ["[\n 1\n]", "a"], "nested": [[1, 2], [3]], "none": []}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert '"samples": [1.0,-2.5e-07,3]' in text and "[1,2]" in text
