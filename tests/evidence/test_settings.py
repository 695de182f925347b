"""The difference list: what the papers state, held against records; the list names parameters that exist."""

import numpy as np
import pytest
from synthetic_records import exact_rows, make_record

from repro.catalogue import PAPERS, all_tables
from repro.evidence.published import load_published, published_table
from repro.evidence.settings import (
    PaperSettings,
    compare_settings,
    decisive_differences,
    load_settings,
    settings_for,
)
from repro.parameters import read_parameters

TABLE1 = "scorecampp/table1_pets_resnet18"


def record(table_id, preset="paper", dataset=None, **parameters):
    table = published_table(table_id)
    changes = {"dataset": dataset} if dataset else {}
    return make_record(
        table_id, exact_rows(table, table.cells[0], np.random.default_rng(0), **changes), preset, parameters=parameters
    )


def states(found):
    return {line.name: line.state for line in compare_settings(found.id, found)}


@pytest.mark.parametrize("paper", PAPERS)
def test_every_table_states_data_and_settings_with_their_places(paper):
    for table in load_published(paper):
        lines = compare_settings(table.id, None)
        assert [line.name for line in lines[:2]] == ["data set", "network"]
        assert all(line.place and line.state == "not recorded" for line in lines)
    assert {s.origin for s in load_settings(paper).settings} == {"stated", "inferred", "ours"}


@pytest.mark.parametrize("paper", PAPERS)
def test_parameters_named_are_parameters_of_the_notebooks(paper):
    tables = [table for table in all_tables() if table.paper == paper]
    if not tables:
        pytest.skip(f"no notebooks of {paper}")
    known = {parameter.name for table in tables for parameter in read_parameters(table)}
    named = {s.parameter.partition(".")[0] for s in load_settings(paper).settings if s.parameter}
    assert named <= known


def test_same_differs_and_not_recorded():
    found = states(record(TABLE1, images=200, epochs=100, weights="torchvision"))
    assert found["images explained"] == "differs"
    assert found["epochs of fine-tuning"] == found["weights"] == found["data set"] == "same"
    assert found["batch size of fine-tuning"] == "not recorded"


def test_our_name_for_a_printed_data_set_is_the_same_data_set():
    assert states(record(TABLE1, dataset="dogs_vs_cats"))["data set"] == "same"
    assert states(record(TABLE1, dataset="oxford_pets"))["data set"] == "differs"


@pytest.mark.parametrize(
    ("preset", "parameters", "decisive"),
    [
        ("paper", {"weights": "torchvision", "epochs": 100}, set()),
        ("paper", {"weights": "torchvision", "epochs": 2}, {"epochs of fine-tuning"}),
        ("paper", {"weights": "torchvision"}, set()),
        ("quick", {"weights": "torchvision"}, {"epochs of fine-tuning"}),
    ],
)
def test_decisive_settings(preset, parameters, decisive):
    assert {d.name for d in decisive_differences(record(TABLE1, preset, **parameters))} == decisive


def test_values_by_data_set_and_departures_in_a_mapping():
    plain = record("dfg/fig6_rho", schedule={})
    assert states(plain)["iterations"] == "same"
    short = record("dfg/fig6_rho", schedule={"iterations": 600})
    (found,) = [d for d in decisive_differences(short) if d.name == "iterations"]
    assert (found.run, found.paper) == ("600", "20000")
    assert states(record("dfg/fig6_rho", dataset="cinic10", schedule={"iterations": 40000}))["iterations"] == "same"


def test_settings_of_one_table_only():
    names = [setting.name for setting in settings_for("scorecampp/table8_vit")]
    assert "copies of Augmented Grad-CAM++" not in names
    assert "epochs of fine-tuning" not in names


def test_faulty_files_are_refused():
    entry = {"name": "n", "value": 1, "origin": "stated", "place": "p"}
    PaperSettings.model_validate({"paper": "ega", "settings": [entry]})
    with pytest.raises(ValueError, match="another paper"):
        PaperSettings.model_validate({"paper": "ega", "settings": [entry | {"tables": ["dfg/fig6_rho"]}]})
    with pytest.raises(ValueError, match="paper must be one of"):
        load_settings("bert")  # type: ignore[arg-type]
