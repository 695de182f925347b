"""CutMix: boxes and labels by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from comparator_helpers import one_step, trained

from repro.training import EGASettings
from repro.training.batches import Batch, StepRandom
from repro.training.comparators import CutMixSettings, MixedBoxes, erasing
from repro.training.comparators.erasing import pasted_pixels


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


def test_two_processes_mix_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rows = one_step([]), (slice(0, 4), slice(4, 8))
    shares = []
    for rank in (0, 1):
        random = [StepRandom(0, 7, 8, part, torch.device("cpu")) for part in rows]
        labels = plain.batch.labels
        batches = [Batch(plain.batch.images[part], labels[part], labels[part]) for part in rows]
        orders = torch.cat([StepRandom(0, 7, 8, part, torch.device("cpu")).uniform(5)[:, 4] for part in rows])
        one_hot = F.one_hot(plain.batch.target, 3).float()
        gathered = [orders, plain.batch.images, one_hot]
        monkeypatch.setattr(erasing, "whole_batch", lambda share, queue=gathered: queue.pop(0))
        monkeypatch.setattr(erasing, "own_share", lambda values, part=rows[rank]: values[part])
        context = replace(plain.context, random=random[rank])
        shares.append(MixedBoxes(1.0).transform_batch(batches[rank], context))
    context = replace(plain.context, random=StepRandom(0, 7, 8, slice(None), torch.device("cpu")))
    monkeypatch.undo()
    together = MixedBoxes(1.0).transform_batch(plain.batch, context)
    assert torch.equal(torch.cat([share.images for share in shares]), together.images)
    assert torch.equal(torch.cat([share.target for share in shares]), together.target)


def test_it_trains_alone_and_with_ega(tmp_path: Path) -> None:
    alone = trained(CutMixSettings(), tmp_path / "alone")
    assert alone.maps.isfinite().all() and torch.equal(alone.maps, alone.again())
    both = trained(CutMixSettings(), tmp_path / "both", EGASettings().ingredients())
    assert "entropy_adversarial" in both.history[0] and both.history[-1]["loss"] < 12
