"""HaS: hidden patches by hand, their share, nothing hidden outside training."""

from pathlib import Path

import pytest
import torch
from comparator_helpers import one_step, trained

from repro.training.comparators import HaSSettings, HiddenPatches
from repro.training.comparators.erasing import hidden_pixels


def test_patches_cover_the_grid_from_the_upper_left_corner() -> None:
    hide = torch.tensor([[[True, False], [False, True]]] * 2)
    found = hidden_pixels(hide, torch.tensor([2, 0]), 3)
    assert found[0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert not found[1].any()  # size 0: the whole image stays


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_certain_cases(probability: float, share: float) -> None:
    batch = one_step([HiddenPatches((16,), probability)]).batch
    assert (batch.images == 0).float().mean() == share


def test_half_is_hidden_and_the_draw_depends_on_the_step_alone() -> None:
    part = HiddenPatches((16, 32), 0.5)
    plain, first, second = (one_step(parts).batch.images for parts in ([], [part], [part]))
    assert torch.equal(first, second)
    hidden = (first != plain).any(1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert torch.equal(first[~hidden[:, None].expand_as(first)], plain[~hidden[:, None].expand_as(plain)])
    assert (first[hidden[:, None].expand_as(first)] == 0).all()


def test_it_trains_and_evaluates_without_randomness(tmp_path: Path) -> None:
    found = trained(HaSSettings(), tmp_path / "run")
    assert found.maps.isfinite().all() and torch.equal(found.maps, found.again())
