"""Ensembles: averages by hand, members shared with the single networks, results kept in the store."""

from pathlib import Path

import pytest
import torch
from test_ega_study import TINY

from repro.evidence.published import published_table
from repro.studies.cam_study import average_maps
from repro.studies.ega import (
    ENSEMBLES,
    ensemble_members,
    ensemble_seeds,
    ensembles_of,
    errors,
    localise_all,
    trials_of,
)
from repro.studies.localised import MetricPolicy
from repro.training import RunStore
from repro.training.comparators.erasing import HaSSettings


def test_scaled_maps_are_averaged() -> None:
    first = torch.tensor([[[0.0, 2.0], [4.0, 8.0]]])
    second = torch.tensor([[[100.0, -100.0], [0.0, 0.0]]])  # scaled: 1, 0, .5, .5
    assert average_maps([first, second]).tolist() == [[[0.5, 0.125], [0.5, 0.75]]]
    assert average_maps([first, first]).tolist() == [[[0, 0.25], [0.5, 1]]]
    with pytest.raises(ValueError, match="maps of one size"):
        average_maps([first, torch.zeros(1, 3, 3)])


def test_no_two_ensembles_share_a_member() -> None:
    assert ensemble_seeds(2, 3) == [2, 102, 202]
    members = [seed for start in range(5) for seed in ensemble_seeds(start, 4)]
    assert len(set(members)) == len(members)


def test_an_ensemble_is_stored_and_shares_its_first_member(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    parameters = {**TINY, "methods": ["cam"], "alexnet": "small_cam"}
    single = localise_all(trials_of("ega/table5_corloc", parameters), [0], store)
    assert [outcome.trial.setting["network"] for outcome in single] == ["vgg16", "alexnet"]
    (ensemble,) = ensembles_of(single, 2)
    assert len(list(tmp_path.glob("cam/*/result.json"))) == 1 + 2  # pretraining, seed 0, seed 100
    found = ensemble.found[0]
    study, settings = single[0].study, single[0].trial.settings
    members = [study.maps_and_scores(settings, study.train(settings, seed), study.images.test) for seed in (0, 100)]
    assert torch.allclose(found.maps, average_maps([member.maps for member in members]))
    classes = (members[0].logits + members[1].logits).argmax(1)
    assert torch.equal(found.correct, classes == study.images.test.labels)
    assert study.localise_ensemble(ensemble_members(settings, 0, 2), 0).result.reused
    assert errors([ensemble], ["corloc_error"], MetricPolicy()).rows[0].method == "cam_ensemble"
    assert ensembles_of(single, 0) == []
    with pytest.raises(ValueError, match="at least 2"):
        study.localise_ensemble(ensemble_members(settings, 0, 1), 0)


def test_members_of_has_differ_in_the_size_of_the_patches() -> None:
    members = ensemble_members(HaSSettings(), 7, 4)
    assert [(method.sizes, seed) for method, seed in members] == [((size,), 7) for size in (16, 32, 44, 56)]
    with pytest.raises(ValueError, match=r"patch sizes \[16, 32, 44, 56\]; give at most 4"):
        ensemble_members(HaSSettings(), 0, 5)


def test_ids_are_those_of_the_printed_table() -> None:
    assert set(ENSEMBLES.values()) <= set(published_table("ega/table5_corloc").methods)
