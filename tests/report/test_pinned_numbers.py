"""What the cell tagged `check` prints, and so what `pytest --nbval` notices."""

import pytest

from repro.evidence.record import Row
from repro.report.experiment import main_numbers, pinned_or_own


def rows(scale: float, metric: str = "top1_loc_error") -> list[Row]:
    return [
        Row(method=name, metric=metric, value=scale * value, dataset="scenes")
        for name, value in (("cam", 40), ("ega", -30))
    ]


def test_main_numbers_are_mean_magnitudes():
    assert (
        main_numbers([*rows(1), *rows(0.1, "drop")], 2) == "top1_loc_error, 2 rows: 35\ndrop, 2 rows: 3.5\nfigures: 2"
    )


@pytest.mark.parametrize(("scale", "kept"), [(1, True), (1.3, True), (0.7, True), (0.37, False), (1.6, False)])
def test_a_scaled_metric_changes_what_is_printed(scale, kept):
    stored, own = main_numbers(rows(1), 1), main_numbers(rows(scale), 1)
    assert pinned_or_own(stored, own, within=0.4) == (stored if kept else own)


def test_nothing_stored_another_metric_or_a_lost_row_prints_the_runs_own():
    stored = main_numbers(rows(1), 1)
    for own in (main_numbers(rows(1, "other"), 1), main_numbers(rows(1)[:1], 1), main_numbers(rows(1), 2)):
        assert pinned_or_own(stored, own, within=0.4) == own
    assert pinned_or_own("", stored, within=0.4) == stored


def test_within_nothing_is_exact():
    stored = main_numbers(rows(1), 1)
    assert pinned_or_own(stored, main_numbers(rows(1.01), 1), within=0) != stored
