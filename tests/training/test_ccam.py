"""CCAM: the combination by hand; non-local blocks; the training is that of plain CAM."""

from pathlib import Path

import torch
from comparator_helpers import one_step, trained

from repro.models.cam_backbones import NonLocalBlock
from repro.studies.cam_methods import trained_as
from repro.training import EGASettings, TrainingSettings
from repro.training.comparators import CCAMSettings, NLCCAMSettings, NonLocalBlocks
from repro.training.comparators.attention import combine_maps, rank_weights


def test_weights_fall_from_one_to_minus_one() -> None:
    assert rank_weights(5, 1).tolist() == [1, 0.5, 0, -0.5, -1]
    assert rank_weights(5, 2).tolist() == [1, 0.25, 0, -0.25, -1]
    assert rank_weights(1, 2).tolist() == [1]


def test_the_combination_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[10.0, 20.0]], [[3.0, 5.0]]]])
    assert combine_maps(maps, torch.tensor([[0.0, 1.0, 2.0]]), 2).tolist() == [[[2.0, 5.0]]]  # map 2 - map 0
    assert combine_maps(maps, torch.tensor([[1.0, 2.0, 0.0]]), 2).tolist() == [[[7.0, 15.0]]]  # map 1 - map 2


def test_a_non_local_block_starts_as_identity_and_every_place_sees_every_other() -> None:
    torch.manual_seed(0)
    block, features = NonLocalBlock(4).eval(), torch.randn(2, 4, 3, 3)
    assert torch.equal(block(features), features)
    torch.nn.init.ones_(block.norm.weight)
    features.requires_grad_()
    (block(features) - features)[0, 0, 0, 0].backward()
    assert (features.grad[0].abs().sum(0) > 0).all() and not features.grad[1].any()


def test_a_block_by_hand() -> None:
    block = NonLocalBlock(2).eval()
    for layer, value in ((block.query, 0.0), (block.key, 1.0), (block.value, 1.0), (block.output, 1.0)):
        torch.nn.init.constant_(layer.weight, value)
        torch.nn.init.zeros_(layer.bias)
    torch.nn.init.constant_(block.norm.weight, (1 + block.norm.eps) ** 0.5)
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])
    # a zero query attends to all places alike: values are 4 and 8, their mean 6, and the output adds two of them
    torch.testing.assert_close(block(features), features + 12)


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
