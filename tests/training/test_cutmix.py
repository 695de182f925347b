"""CutMix: boxes and labels by hand."""

from pathlib import Path

import torch
from comparator_helpers import one_step, trained

from repro.training import EGASettings
from repro.training.comparators import CutMixSettings, MixedBoxes
from repro.training.comparators.cutmix import pasted_pixels


def test_the_box_has_the_area_that_lambda_leaves_and_is_cut_at_the_border() -> None:
    keep, centre = torch.tensor([0.75, 0.75, 1.0]), torch.tensor([0.5, 0.0, 0.5])
    found = pasted_pixels(keep, centre, centre, 8, 8)
    assert found.sum((1, 2)).tolist() == [16, 4, 0]  # side 4 of 8; a quarter of it at the corner; nothing
    assert found[0, 2:6, 2:6].all() and found[1, :2, :2].all()


def test_labels_are_mixed_by_the_area_that_was_really_pasted() -> None:
    plain, mixed = one_step([]).batch, one_step([MixedBoxes(1.0)]).batch
    assert torch.equal(mixed.labels, plain.labels)
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(8))
    for image in range(8):
        changed = (mixed.images[image] != plain.images[image]).any(0).float().mean()
        own = mixed.target[image, plain.labels[image]]
        assert 1 - own <= changed + 0.05  # a partner of the same class keeps the label whole
    assert torch.equal(one_step([MixedBoxes(0.0)]).batch.images, plain.images)
    assert torch.equal(one_step([MixedBoxes(1.0)]).batch.target, mixed.target)


def test_it_trains_alone_and_with_ega(tmp_path: Path) -> None:
    alone = trained(CutMixSettings(), tmp_path / "alone")
    assert alone.maps.isfinite().all() and torch.equal(alone.maps, alone.again())
    both = trained(CutMixSettings(), tmp_path / "both", EGASettings().ingredients())
    assert "entropy_adversarial" in both.history[0] and both.history[-1]["loss"] < 12
