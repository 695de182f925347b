"""How a number of ours is written beside a printed one."""

from dataclasses import replace

import pytest

from repro.evidence.comparison import CellComparison
from repro.evidence.published import published_table
from repro.evidence.statistics import Estimate

CELL = published_table("dfg/table1_datasets").cells[0]
BASE = CellComparison("m", "M", "x", "X", "", "neither", {}, CELL, None, "", None)


@pytest.mark.parametrize(
    ("printed", "estimate", "text"),
    [
        ("2.0e-5", Estimate(2e-5, 2e-5, 2e-5, 1, ""), "2.0e-05"),
        ("73237", Estimate(73257.0, 73257.0, 73257.0, 1, ""), "73257"),
        ("40", Estimate(39.53, 38.0, 41.0, 3, ""), "39.5 [38.0, 41.0]"),
        ("21.87", Estimate(49.6, 45.239, 53.97, 3, ""), "49.60 [45.24, 53.97]"),
        ("40.0", Estimate(39.0, float("-inf"), float("inf"), 1, ""), "39.0"),
        ("21.87", None, "published, not re-run"),
    ],
)
def test_ours_is_written_as_the_paper_prints(printed: str, estimate: Estimate | None, text: str) -> None:
    cell = CELL.model_copy(update={"printed": printed})
    assert replace(BASE, published=cell, ours=estimate).ours_text == text


def test_counts_that_play_no_part_are_left_out() -> None:
    assert BASE.count_text == "–"
    assert replace(BASE, runs="1 seed", images=30).count_text == "1 seed, 30 images"
    assert replace(BASE, images=30).count_text == "30 images"
