"""Insertion and deletion curves: hand-computed, endpoints, ties, and torchcam as oracle."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from repro.metrics import InsertionDeletionSettings, insertion_deletion_curves
from repro.metrics.faithfulness_metrics import pixel_ranks


class SumNetwork(nn.Module):
    """Logit 0 is the sum of the first channel, logit 1 is zero."""

    def forward(self, inputs):
        return torch.stack((inputs[:, 0].sum(dim=(1, 2)), inputs.new_zeros(len(inputs))), dim=1)


PLAIN = InsertionDeletionSettings(score_space="logit", steps=4, insertion_background="mean")


def test_curves_and_areas_are_hand_computed() -> None:
    # Pixels in the order of the map: 8, 4, 2, 0 -> values 1, 2, 3, 4 of the image; whole = 10.
    image = torch.tensor([[4.0, 3.0], [2.0, 1.0]]).expand(1, 3, 2, 2)
    maps = torch.tensor([[0.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    curves = insertion_deletion_curves(SumNetwork().eval(), image, maps, torch.tensor([0]), PLAIN)
    assert curves.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curves.insertion.flatten().tolist() == pytest.approx([0, 1, 3, 6, 10])
    assert curves.deletion.flatten().tolist() == pytest.approx([10, 9, 7, 4, 0])
    assert curves.insertion_auc.item() == pytest.approx((0.5 + 2 + 4.5 + 8) / 4)
    assert curves.deletion_auc.item() == pytest.approx((9.5 + 8 + 5.5 + 2) / 4)


def test_the_right_order_beats_the_reverse() -> None:
    image = torch.rand(3, 3, 8, 8)
    maps = torch.stack((image[:, 0], -image[:, 0]), dim=1)
    curves = insertion_deletion_curves(SumNetwork().eval(), image, maps, torch.zeros(3, dtype=torch.long), PLAIN)
    insertion, deletion = curves.insertion_auc, curves.deletion_auc
    assert (insertion[:, 0] > insertion[:, 1]).all()
    assert (deletion[:, 0] < deletion[:, 1]).all()


def test_ties_are_ranked_row_by_row() -> None:
    ranks = pixel_ranks(torch.tensor([[1.0, 2.0], [1.0, 2.0]]).view(1, 1, 2, 2), (2, 2))
    assert ranks.flatten().tolist() == [2, 0, 3, 1]
    assert pixel_ranks(torch.zeros(1, 1, 3, 3), (3, 3)).flatten().tolist() == list(range(9))


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_areas_equal_torchcam(space: str) -> None:
    torchcam_metrics = pytest.importorskip("torchcam.metrics")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    ).eval()
    inputs, maps = torch.randn(4, 3, 16, 16), torch.rand(4, 1, 5, 5)

    class FixedExtractor:
        model = network
        _hooks_off = staticmethod(nullcontext)

        def __call__(self, class_idx=None, scores=None, normalized=True, **_options):
            return [maps[:, 0]]

        def fuse_cams(self, cams):
            return cams[0]

    logits_fn = (lambda logits: logits.softmax(1)) if space == "probability" else None
    oracle = torchcam_metrics.DeletionInsertionMetric(FixedExtractor(), logits_fn, steps=8)
    oracle.update(inputs)
    settings = InsertionDeletionSettings(score_space=space, steps=8, insertion_background="mean")
    curves = insertion_deletion_curves(network, inputs, maps, None, settings, batch_size=7)
    assert curves.insertion_auc.mean().item() == pytest.approx(oracle.summary()["insertion_auc"], rel=1e-5)
    assert curves.deletion_auc.mean().item() == pytest.approx(oracle.summary()["deletion_auc"], rel=1e-5)


def test_bad_input_is_named() -> None:
    network, image, maps = SumNetwork().eval(), torch.rand(1, 3, 2, 2), torch.rand(1, 1, 2, 2)
    with pytest.raises(ValueError, match="steps: 5 for 4 pixels"):
        insertion_deletion_curves(
            network, image, maps, None, InsertionDeletionSettings(steps=5, insertion_background="mean")
        )
    with pytest.raises(ValueError, match="steps"):
        InsertionDeletionSettings(steps=0)
