"""The ledger of readings and the code it describes cannot drift apart."""

from dataclasses import dataclass
from typing import Literal

import pytest
from ledger import drift, unlisted_fields
from pydantic import BaseModel, ValidationError

from repro.catalogue import PAPERS
from repro.evidence.published import load_published
from repro.evidence.readings import (
    Reading,
    load_readings,
    option_name,
    parse_readings,
    readings_for,
)

Space = Literal["pixels", "normalised"]


@dataclass(frozen=True)
class ToySettings:
    space: Space = "pixels"
    detach: bool = True
    gate: float | None = None
    hidden: tuple[int, int] = (120, 84)


class ToyReadings(BaseModel):
    sign: Literal[-1, 1] = 1
    order: Literal["before", "after"] = "before"


def toy_attack(space: Space = "pixels", steps: int = 1) -> None:
    """Stands for a function whose argument is a reading."""


def reading(parameter, options, default):
    return Reading(
        id="ega.toy",
        parameter=None if parameter is None else f"{__name__}.{parameter}",
        question="?",
        options=dict.fromkeys(options, ""),
        default=default,
        paper=default,
        released=None,
        evidence="toy",
        tables=["ega/table1_cub"],
    )


@pytest.mark.parametrize(
    ("parameter", "options", "default"),
    [
        ("ToySettings.space", ["pixels", "normalised"], "pixels"),
        ("ToySettings.detach", [True, False], True),
        ("ToySettings.gate", ["none", 0.05], "none"),
        ("ToySettings.hidden", ["120, 84", "1024, 128"], "120, 84"),
        ("ToyReadings.sign", [1, -1], 1),
        ("toy_attack.space", ["normalised", "pixels"], "pixels"),
        ("Space", ["normalised", "pixels"], "normalised"),
        (None, ["one", "other"], "one"),
    ],
)
def test_agreement_of_ledger_and_code_is_silent(parameter, options, default):
    assert drift(reading(parameter, options, default)) == []


@pytest.mark.parametrize(
    ("parameter", "options", "default", "message"),
    [
        ("ToySettings.space", ["pixels", "normalised"], "normalised", "the ledger says normalised"),
        ("ToySettings.space", ["pixels", "normalised", "unit"], "pixels", "offers"),
        ("ToySettings.detach", ["yes", "no"], "yes", "offers"),
        ("ToySettings.gate", ["none", 0.05], 0.05, "is none, the ledger says 0.05"),
        ("ToySettings.colour", ["red", "blue"], "red", "does not exist"),
        ("Nowhere.colour", ["red", "blue"], "red", "does not exist"),
    ],
)
def test_drift_is_named(parameter, options, default, message):
    problems = drift(reading(parameter, options, default))
    assert any(message in problem for problem in problems), problems


def test_a_module_that_does_not_exist_is_drift():
    broken = reading(None, ["a", "b"], "a").model_copy(update={"parameter": "repro.nowhere.Thing.field"})
    assert "does not exist" in drift(broken)[0]
    assert unlisted_fields([broken]) == []


def test_a_comma_that_split_an_option_text_is_refused():
    text = (
        "[{id: ega.toy, parameter: null, question: q, options: {a: softmax, about one, b: none}, default: a, paper: a,"
    )
    with pytest.raises(ValidationError, match="about one"):
        parse_readings(text + " released: null, evidence: e, tables: [ega/table1_cub]}]")


def test_a_readings_class_must_be_listed_whole():
    listed = [reading("ToyReadings.sign", [1, -1], 1)]
    assert unlisted_fields(listed) == [f"{__name__}.ToyReadings.order"]


@pytest.mark.parametrize(
    ("value", "name"), [(None, "none"), (True, "true"), (1.0, "1"), ((120, 84), "120, 84"), ("(120, 84)", "120, 84")]
)
def test_option_names(value, name):
    assert option_name(value) == name


def test_a_choice_outside_the_options_is_refused():
    with pytest.raises(ValidationError, match="default is 'c'"):
        reading(None, ["a", "b"], "c")


@pytest.mark.parametrize("text", ["{a: 1}", "word"])
def test_a_ledger_must_be_a_list(text):
    with pytest.raises(ValueError, match="must hold a list"):
        parse_readings(text, "toy.yaml")


def test_the_ledger_and_the_code_agree():
    assert [problem for entry in load_readings() for problem in drift(entry)] == []


def test_every_readings_class_is_listed_whole():
    assert unlisted_fields(load_readings()) == []


def test_ledger_tables_exist():
    known = {table.id for paper in PAPERS for table in load_published(paper)}
    for entry in load_readings():
        assert set(entry.tables) <= known, entry.id
        assert all(entry in readings_for(table) for table in entry.tables)
