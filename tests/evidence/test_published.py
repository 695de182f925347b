"""Published numbers: typed from the printed tables by hand, complete, and consistent with themselves."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from repro.catalogue import PAPERS
from repro.evidence.published import (
    PublishedTable,
    load_published,
    published_table,
    rounding_interval,
)

TABLES = [table for paper in PAPERS for table in load_published(paper)]
G, V = {"network": "googlenet"}, {"network": "vgg16"}
COUNTED = ("increase_in_confidence", "win")

# Typed from the papers a second time, independently of the YAML files.
SPOT_CELLS = [
    ("ega/table1_cub", "ega", "top1_loc_error", V, "40.84"),
    ("ega/table1_cub", "adl", "top1_cls_error", V, "34.73"),
    ("ega/table1_cub", "danet", "top1_loc_error", G, "50.55"),
    ("ega/table2_ilsvrc", "nl_ccam", "top1_loc_error", V, "49.83"),
    ("ega/table2_ilsvrc", "backprop", "top1_loc_error", G, "61.31"),
    ("ega/table2_ilsvrc", "ega", "top1_cls_error", G, "27.42"),
    ("ega/table3_openimages", "has", "top1_cls_error", G, "31.6"),
    ("ega/table3_openimages", "ega", "pxap_error", V, "38.21"),
    ("ega/table4_maxboxaccv2", "has", "max_box_acc_v2_error", {"dataset": "cub"}, "36.6"),
    ("ega/table4_maxboxaccv2", "acol", "max_box_acc_v2_error", {"dataset": "ilsvrc"}, "42.6"),
    ("ega/table5_corloc", "has_ensemble", "corloc_error", {"network": "alexnet"}, "39.67"),
    ("ega/table5_corloc", "ega", "corloc_error", G, "35.17"),
    ("ega/table6_components", "cam_adversarial", "top1_loc_error", V, "40.93"),
    (
        "ega/table7_entropy_weights",
        "ega",
        "top1_loc_error",
        {"lambda_clean": 0.01, "lambda_adversarial": 0.002},
        "41.23",
    ),
    ("dfg/table1_datasets", "training_set", "training_images", {"dataset": "svhn"}, "73237"),
    ("dfg/table2_accuracy", "fine_tuning", "top1_accuracy", {"dataset": "fashion_mnist"}, "75.39"),
    ("dfg/table2_accuracy", "difa_cmwgan", "top1_accuracy", {"dataset": "food101"}, "71.71"),
    ("dfg/table2_accuracy", "dfg", "top1_accuracy", {"dataset": "caltech256"}, "86.29"),
    ("dfg/fig6_rho", "dfg", "top1_accuracy", {"rho": 0}, "79.98"),
    ("scorecampp/table1_pets_resnet18", "auggradcampp", "increase_in_confidence", {}, "28.00"),
    ("scorecampp/table2_pets_vgg19", "xgradcam", "win", {}, "16.65"),
    ("scorecampp/table3_imagenet_resnet18", "gradcam", "average_drop", {}, "9.77"),
    ("scorecampp/table4_imagenet_vgg19", "scorecam", "average_drop", {}, "12.75"),
    ("scorecampp/table5_activations", "scorecampp", "win", {"gate": "mish"}, "6.16"),
    ("scorecampp/table6_gating", "scorecampp", "win", {"gated": "mask"}, "20.14"),
    ("scorecampp/table7_logit_drop", "scorecampp", "average_drop_in_logit", {}, "9.65"),
    ("scorecampp/table8_vit", "layercam", "average_drop", {}, "18.17"),
]
PRINTED_CELLS = {
    "ega/table1_cub": 24,
    "ega/table2_ilsvrc": 25,
    "ega/table3_openimages": 28,
    "ega/table4_maxboxaccv2": 14,
    "ega/table5_corloc": 11,
    "ega/table6_components": 12,
    "ega/table7_entropy_weights": 10,
    "dfg/table2_accuracy": 30,
    "scorecampp/table1_pets_resnet18": 21,
    "scorecampp/table2_pets_vgg19": 21,
    "scorecampp/table3_imagenet_resnet18": 21,
    "scorecampp/table4_imagenet_vgg19": 21,
    "scorecampp/table5_activations": 15,
    "scorecampp/table6_gating": 6,
    "scorecampp/table7_logit_drop": 7,
    "scorecampp/table8_vit": 18,
}


@pytest.mark.parametrize(("table", "method", "metric", "setting", "printed"), SPOT_CELLS)
def test_spot_cells_typed_by_hand(table, method, metric, setting, printed):
    cell = published_table(table).cell(method, metric, setting)
    assert cell is not None
    assert (cell.printed, cell.value) == (printed, float(printed))


def test_spread_is_kept():
    cell = published_table("dfg/table2_accuracy").cell("original", "top1_accuracy", {"dataset": "cinic10"})
    assert cell is not None
    assert (cell.value, cell.spread) == (58.14, 3.42)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.id)
def test_every_cell_is_printed_or_listed_as_not_printed(table):
    printed = {table.address(cell) for cell in table.cells}
    empty = {address for address in table.grid() if any(gap.matches(address) for gap in table.not_printed)}
    assert printed.isdisjoint(empty)
    assert printed | empty == set(table.grid())
    assert len(table.cells) == PRINTED_CELLS.get(table.id, len(table.cells))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.id)
def test_percentages_are_percentages(table):
    for cell in table.cells:
        if table.metrics[cell.metric].unit == "%":
            assert 0 <= cell.value <= 100
            assert cell.spread is None or 0 <= cell.spread < 10


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.id)
def test_wins_are_shared_out(table):
    wins = [cell.value for cell in table.cells if cell.metric == "win"]
    assert not wins or sum(wins) == pytest.approx(100, abs=0.005 * len(wins))


@given(st.decimals(min_value=-1000, max_value=1000, places=2), st.integers(0, 4))
def test_rounding_interval_holds_exactly_what_rounds_to_it(value, places):
    printed = f"{value:.{places}f}"
    low, high = rounding_interval(printed)
    assert low <= float(value) + 1e-9
    assert float(value) - 1e-9 <= high
    assert high - low == pytest.approx(10.0**-places)


@pytest.mark.parametrize(
    ("printed", "interval"),
    [
        ("46.3", (46.25, 46.35)),
        ("28.00", (27.995, 28.005)),
        ("18000", (17999.5, 18000.5)),
        ("2.0e-5", (1.95e-5, 2.05e-5)),
    ],
)
def test_rounding_interval_by_hand(printed, interval):
    assert rounding_interval(printed) == pytest.approx(interval, rel=1e-12)


@pytest.mark.parametrize("printed", ["-", "", "46,3", "nan", "inf"])
def test_rounding_interval_refuses_what_is_no_number(printed):
    with pytest.raises(ValueError, match="printed"):
        rounding_interval(printed)


def grim_consistent(printed, n):
    """Whether a printed percentage can be k of n images (GRIM test, Brown and Heathers 2017), in exact arithmetic."""
    low, high = (Fraction(str(end)) * n / 100 for end in rounding_interval(printed))
    return max(0, math.ceil(low)) <= min(n, math.floor(high))


def counted(table_id):
    return [cell.printed for cell in published_table(table_id).cells if cell.metric in COUNTED]


@pytest.mark.parametrize(
    "number", ["1_pets_resnet18", "2_pets_vgg19", "3_imagenet_resnet18", "4_imagenet_vgg19", "8_vit"]
)
def test_grim_percentages_of_2000_images(number):
    assert all(grim_consistent(printed, 2000) for printed in counted(f"scorecampp/table{number}"))


def test_grim_table_6_is_the_mini_validation_set_not_2000_images():
    assert not any(grim_consistent(printed, 2000) for printed in counted("scorecampp/table6_gating"))
    assert all(grim_consistent(printed, 3923) for printed in counted("scorecampp/table6_gating"))


def test_grim_table_5_fits_no_number_of_images_up_to_5000():
    percentages = counted("scorecampp/table5_activations")
    assert not [n for n in range(1, 5001) if all(grim_consistent(printed, n) for printed in percentages)]


def minimal(**changes):
    table = {
        "id": "ega/table1_cub",
        "title": "t",
        "source": "s",
        "metrics": {"win": {"label": "Win", "better": "higher"}},
        "methods": {"ega": "EGA"},
        "cells": [{"method": "ega", "metric": "win", "value": 1.5, "printed": "1.5"}],
    }
    return table | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "Extra inputs"),
        ({"cells": [{"method": "ega", "metric": "win", "value": 1.5, "printed": "1.6"}]}, "is not the printed"),
        ({"cells": [{"method": "cam", "metric": "win", "value": 1.5, "printed": "1.5"}]}, "outside the methods"),
        ({"cells": minimal()["cells"] * 2}, "given twice"),
        ({"id": "resnet/table1"}, "pattern"),
    ],
)
def test_faulty_tables_are_refused(changes, message):
    PublishedTable.model_validate(minimal())
    with pytest.raises(ValidationError, match=message):
        PublishedTable.model_validate(minimal(**changes))


@pytest.mark.parametrize("table_id", ["ega/table9", "bert/table1", "ega"])
def test_an_unknown_table_is_named_with_the_choices(table_id):
    with pytest.raises(ValueError, match="choose one of"):
        published_table(table_id)


def test_an_unknown_paper_is_refused():
    with pytest.raises(ValueError, match="paper must be one of"):
        load_published("bert")  # type: ignore[arg-type]
