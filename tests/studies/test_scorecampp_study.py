"""ScoreCAM++ study: what is not finite stops with image and method named; a control that matches nothing says so."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repro.metrics.faithfulness import FaithfulnessSettings
from repro.studies.explanations import (
    AREA_MATCHED,
    CONTROLS,
    PAPER_METHODS,
    Explanations,
    SubjectSettings,
    box_overlap,
    explain,
    prepare_subject,
)
from repro.studies.scorecampp import area_controls, box_accuracy, columns
from repro.training.run_store import RunStore

SETTINGS = SubjectSettings(
    dataset="scenes", images=4, architecture="small_cnn", weights=None, epochs=0, input_size=32, seed=1
)


def explained(store: RunStore) -> Explanations:
    subject = prepare_subject(SETTINGS, store)
    return explain(subject, ["scorecampp"], FaithfulnessSettings(), store, augmented_copies=1)


def test_a_map_that_is_not_finite_names_image_and_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path)
    subject = prepare_subject(SETTINGS, store)
    from repro.studies import explanations

    make = explanations.make_maps

    def broken(*arguments: object) -> dict[str, torch.Tensor]:
        maps = make(*arguments)  # type: ignore[arg-type]
        maps["layercam"][2] = torch.nan
        return maps

    monkeypatch.setattr(explanations, "make_maps", broken)
    with pytest.raises(ValueError, match=f"image '{subject.images.ids[2]}' of scenes: the map of layercam is NaN"):
        explain(subject, ["scorecampp"], FaithfulnessSettings(), store, augmented_copies=1)


def test_every_control_stands_beside_the_method_whose_area_it_has(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    subject, scored = prepare_subject(SETTINGS, store), explained(RunStore(tmp_path))
    controls, rows = area_controls(subject, scored, "probability")
    assert {control.control for control in controls} == set(CONTROLS)
    assert {row.method for row in rows.rows} == set(CONTROLS)
    narrowed = next(control for control in controls if control.control == "scorecampp_area_matched")
    assert narrowed.method == "scorecam"
    # No image left, none matched: said, not thrown.
    areas = scored.tensors["area"].clone()
    areas[:, scored.methods.index(AREA_MATCHED)] += 1
    apart = replace(scored, tensors=scored.tensors | {"area": areas})
    nothing, kept = area_controls(subject, apart, "probability")
    assert "is not compared" in nothing[0].sentence
    assert "n = 0 of 4 images" in nothing[0].sentence
    assert len(kept.rows) == len(rows.rows)


def test_maps_are_held_against_boxes(tmp_path: Path) -> None:
    # A map that is the object's box overlaps it at every level; one beside it never does.
    maps = torch.zeros(1, 2, 8, 8)
    maps[0, 0, 2:5, 1:4] = 1
    maps[0, 1, 6:, 6:] = 1
    overlap = box_overlap(maps, [torch.tensor([[1, 2, 4, 5]])])
    assert overlap[0, 0, :255].eq(1).all()
    assert overlap[0, 1].eq(0).all()
    subject = prepare_subject(SETTINGS, RunStore(tmp_path))
    rows = box_accuracy(subject, explained(RunStore(tmp_path)), columns(PAPER_METHODS)).rows
    assert [row.method for row in rows] == list(PAPER_METHODS)
    assert all(0 <= row.value <= 100 and row.n == 4 for row in rows)
