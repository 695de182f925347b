"""CCAM: the combination by hand; non-local blocks; the training is that of plain CAM."""

from pathlib import Path

import pytest
import torch
from comparator_helpers import one_step, trained

from repro.models.non_local import NonLocalBlock
from repro.studies.cam_methods import trained_as
from repro.training import EGASettings, TrainingSettings
from repro.training.comparators import CCAMSettings, NLCCAMSettings, NonLocalBlocks
from repro.training.comparators.ccam import combine_maps, rank_weights


def test_weights_fall_from_one_to_minus_one() -> None:
    assert rank_weights(5, 1).tolist() == [1, 0.5, 0, -0.5, -1]
    assert rank_weights(5, 3).tolist() == [1, 0.125, 0, -0.125, -1]
    assert rank_weights(1, 3).tolist() == [1]
    with pytest.raises(ValueError, match="power is 2"):
        rank_weights(5, 2)


def test_the_combination_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[10.0, 20.0]], [[3.0, 5.0]]]])
    logits = torch.tensor([[0.0, 1.0, 2.0]])  # order 2, 1, 0
    assert combine_maps(maps, logits, torch.tensor([2]), 1).tolist() == [[[2.0, 5.0]]]  # map 2 - map 0
    assert combine_maps(maps, logits, torch.tensor([0]), 1).tolist() == [[[-9.0, -20.0]]]  # order 0, 2, 1


def test_a_non_local_block_starts_as_identity_and_every_place_sees_every_other() -> None:
    torch.manual_seed(0)
    block, features = NonLocalBlock(4), torch.randn(2, 4, 3, 3)
    assert torch.equal(block(features), features)
    torch.nn.init.ones_(block.output.weight)
    features.requires_grad_()
    (block(features) - features)[0, 0, 0, 0].backward()
    assert (features.grad[0].abs().sum(0) > 0).all() and not features.grad[1].any()


def test_a_block_by_hand() -> None:
    block = NonLocalBlock(2)
    for layer, value in ((block.query, 0.0), (block.key, 1.0), (block.value, 1.0), (block.output, 1.0)):
        torch.nn.init.constant_(layer.weight, value)
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])
    # a zero query attends to all places alike: value is the sum over channels, 4 and 8, whose mean is 6
    assert block(features).tolist() == [[[[7.0, 8.0]], [[9.0, 12.0]]]]


def test_ccam_uses_the_training_of_plain_cam() -> None:
    training = TrainingSettings(epochs=3)
    assert trained_as(CCAMSettings(training=training)) == EGASettings.baseline(training)
    own = NLCCAMSettings(training=training)
    assert trained_as(own) is own


def test_both_train_and_localise(tmp_path: Path) -> None:
    for method in (CCAMSettings(), NLCCAMSettings()):
        found = trained(method, tmp_path / type(method).__name__)
        assert found.maps.isfinite().all() and torch.equal(found.maps, found.again())
    assert sum(isinstance(part, NonLocalBlock) for part in one_step([NonLocalBlocks()]).context.network.modules()) == 3
