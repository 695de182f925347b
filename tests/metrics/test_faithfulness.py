"""Masks and scores: hand-computed on a network that adds up pixels, and held against torchcam and grad-cam."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro.data.images import HALF, IMAGENET
from repro.metrics import FaithfulnessSettings, explanation_maps, explanation_scores, whole_image
from repro.metrics.faithfulness import keep_largest, min_max


class SumNetwork(nn.Module):
    """Logit 0 is the sum of the first channel, logit 1 is zero."""

    def forward(self, inputs):
        return torch.stack((inputs[:, 0].sum(dim=(1, 2)), inputs.new_zeros(len(inputs))), dim=1)


# A shape or dtype is refused by the type checker where the session runs with one, by the function itself elsewhere.
REFUSED = (ValueError, TypeError)


def _convolutional_network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))
    return nn.Sequential(*layers).eval()


def _image(*pixels: float) -> torch.Tensor:
    return torch.tensor(pixels, dtype=torch.float32).view(1, 1, 2, 2).expand(1, 3, 2, 2)


TARGET = torch.tensor([0])
MAP = torch.tensor([[0.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_kept_and_removed_regions_are_hand_computed() -> None:
    # mask = 0, 1/4, 1/2, 1; image = 4, 4, 4, -2: kept 0 + 1 + 2 - 2 = 1, removed 4 + 3 + 2 - 0 = 9, whole 10.
    arguments = (SumNetwork().eval(), _image(4, 4, 4, -2), MAP, TARGET, FaithfulnessSettings())
    kept = explanation_scores(*arguments)
    removed = explanation_scores(*arguments, region="removed")
    assert kept.original.logit.item() == pytest.approx(10)
    assert kept.masked.logit.item() == pytest.approx(1)
    assert removed.masked.logit.item() == pytest.approx(9)
    assert kept.masked.in_space("probability").item() == pytest.approx(_sigmoid(1))
    assert kept.area.item() == removed.area.item() == pytest.approx(1.75 / 4)
    assert kept.masked.logit.shape == (1, 1)


def test_black_background_is_the_normalised_zero_pixel() -> None:
    # HALF: black is -1. 1 - mask = 1, 3/4, 1/2, 0 sums to 2.25, so the kept score of the case above falls by 2.25.
    settings_ = FaithfulnessSettings(background="black")
    arguments = (SumNetwork().eval(), _image(4, 4, 4, -2), MAP, TARGET, settings_)
    assert explanation_scores(*arguments, normalisation=HALF).masked.logit.item() == pytest.approx(1 - 2.25)
    with pytest.raises(ValueError, match="background='black' needs"):
        explanation_scores(*arguments)


def test_blur_background_leaves_a_flat_image_as_it_is() -> None:
    inputs, maps = torch.full((1, 3, 16, 16), 0.5), torch.rand(1, 1, 4, 4)
    blurred = FaithfulnessSettings(background="blur")
    scores = explanation_scores(SumNetwork().eval(), inputs, maps, TARGET, blurred)
    torch.testing.assert_close(scores.masked.logit[:, 0], scores.original.logit)
    with pytest.raises(ValueError, match="at least 6"):
        explanation_scores(SumNetwork().eval(), _image(1, 1, 1, 1), MAP, TARGET, blurred)


def test_normalisation_order_differs_only_below_full_resolution() -> None:
    low = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    full = explanation_maps(low, (10, 10), FaithfulnessSettings(normalise="fullres")).masks
    late = explanation_maps(low, (10, 10), FaithfulnessSettings(normalise="lowres")).masks
    assert full.amax(dim=(2, 3)).eq(1).all() and full.amin(dim=(2, 3)).eq(0).all()
    assert late.amax(dim=(2, 3)).lt(1).any()
    torch.testing.assert_close(min_max(late).masks, full)
    same = [
        explanation_maps(low, (4, 4), FaithfulnessSettings(normalise=order)).masks for order in ("fullres", "lowres")
    ]
    assert torch.equal(*same)


def test_keep_half_of_the_pixels() -> None:
    mask = torch.tensor([[0.2, 1.0], [0.9, 0.9]]).view(1, 1, 2, 2)
    assert keep_largest(mask, 0.5).flatten().tolist() == pytest.approx([0, 1.0, 0.9, 0])
    assert keep_largest(mask, 0.51).flatten().tolist() == pytest.approx([0, 1.0, 0.9, 0.9])
    kept = explanation_maps(mask, (2, 2), FaithfulnessSettings(keep=0.25)).masks
    assert kept.flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(("value", "mask"), [(0.0, 0.0), (0.3, 1.0), (-0.3, 0.0)])
@pytest.mark.parametrize("order", ["fullres", "lowres"])
def test_constant_maps_are_defined_and_marked(value: float, mask: float, order: str) -> None:
    ready = explanation_maps(torch.full((1, 1, 7, 7), value), (50, 50), FaithfulnessSettings(normalise=order))
    assert ready.constant.all()
    assert ready.masks.eq(mask).all()


def test_a_zero_map_explains_nothing_and_a_map_of_ones_everything() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    inputs = torch.randn(5, 3, 16, 16)
    maps = torch.cat((torch.zeros(5, 1, 4, 4), whole_image(torch.rand(5, 1, 4, 4)), torch.rand(5, 1, 4, 4)), dim=1)
    scores = explanation_scores(network, inputs, maps, None, FaithfulnessSettings(), batch_size=2)
    background = network(torch.zeros(1, 3, 16, 16)).detach()[0]
    torch.testing.assert_close(scores.masked.logit[:, 0], background[scores.target])
    assert torch.equal(scores.masked.logit[:, 1], scores.original.logit)
    assert torch.equal(scores.masked.probability[:, 1], scores.original.probability)
    assert scores.constant.tolist() == [[True, True, False]] * 5
    only_ones = explanation_scores(network, inputs, torch.ones(5, 2, 4, 4), None, FaithfulnessSettings())
    assert torch.equal(only_ones.masked.logit, only_ones.original.logit[:, None].expand(-1, 2))


def test_batches_and_methods_do_not_change_a_score() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    inputs, maps, target = torch.randn(5, 3, 16, 16), torch.rand(5, 3, 4, 4), torch.tensor([0, 1, 2, 3, 0])
    together = explanation_scores(network, inputs, maps, target, FaithfulnessSettings(), batch_size=4)
    for method in range(3):
        for image in range(5):
            one = slice(image, image + 1)
            mask = explanation_maps(maps[one, method : method + 1], (16, 16), FaithfulnessSettings()).masks
            expected = network(inputs[one] * mask)[0]
            measured = together.masked
            torch.testing.assert_close(measured.logit[image, method], expected[target[image]])
            torch.testing.assert_close(measured.probability[image, method], expected.softmax(0)[target[image]])


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-5, 5), seed=st.integers(0, 1000))
def test_masks_do_not_depend_on_the_scale_of_a_map(scale: float, shift: float, seed: int) -> None:
    maps = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ready = min_max(maps).masks
    torch.testing.assert_close(min_max(maps * scale + shift).masks, ready)
    assert ready.min() == 0 and ready.max() == 1


def test_bad_input_is_named() -> None:
    network, inputs, plain = SumNetwork().eval(), _image(1, 2, 3, 4), FaithfulnessSettings()
    with pytest.raises(ValueError, match="training mode"):
        explanation_scores(SumNetwork().train(), inputs, MAP, TARGET, plain)
    with pytest.raises(ValueError, match="1 of 1 hold NaN"):
        explanation_scores(network, inputs, MAP * math.nan, TARGET, plain)
    with pytest.raises(REFUSED):
        explanation_scores(network, inputs, MAP.expand(2, 1, 2, 2), TARGET, plain)
    with pytest.raises(REFUSED):
        explanation_scores(network, inputs.to(torch.uint8), MAP, TARGET, plain)
    with pytest.raises(ValueError, match=r"outside the network's 0\.\.1"):
        explanation_scores(network, inputs, MAP, torch.tensor([2]), plain)
    with pytest.raises(ValueError, match="batch_size"):
        explanation_scores(network, inputs, MAP, TARGET, plain, batch_size=0)
    with pytest.raises(ValueError, match="keep"):
        FaithfulnessSettings(keep=0.0)
    with pytest.raises(ValueError, match="score_space"):
        FaithfulnessSettings(score_space="softmax")


def _network_and_data():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    ).eval()
    pixels = torch.randint(0, 256, (12, 3, 20, 20), dtype=torch.uint8)
    return network, IMAGENET.apply(pixels), torch.rand(12, 1, 5, 5)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_average_drop_and_increase_equal_torchcam(space: str) -> None:
    torchcam_metrics = pytest.importorskip("torchcam.metrics")
    from contextlib import nullcontext

    from repro.metrics import AverageDrop, IncreaseInConfidence

    network, inputs, maps = _network_and_data()

    class FixedExtractor:
        model = network
        _hooks_off = staticmethod(nullcontext)

        def __call__(self, class_idx=None, scores=None, normalized=True, **_options):
            return [min_max(maps).masks[:, 0]]

        def fuse_cams(self, cams):
            return cams[0]

    oracle = torchcam_metrics.ClassificationMetric(
        FixedExtractor(), (lambda logits: logits.softmax(1)) if space == "probability" else None
    )
    oracle.update(inputs)
    scores = explanation_scores(network, inputs, maps, None, FaithfulnessSettings(normalise="lowres"))
    drop, increase = AverageDrop(), IncreaseInConfidence()
    drop.update(scores.original.in_space(space), scores.masked.in_space(space)[:, 0])
    increase.update(scores.original.in_space(space), scores.masked.in_space(space)[:, 0])
    assert drop.undefined() == 0
    assert drop.compute().item() == pytest.approx(100 * oracle.summary()["avg_drop"], rel=1e-4)
    assert increase.compute().item() == pytest.approx(100 * oracle.summary()["conf_increase"])


def test_masked_scores_equal_grad_cam() -> None:
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
    from pytorch_grad_cam.metrics.cam_mult_image import IncreaseInConfidence as PeerIncrease
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    network, inputs, maps = _network_and_data()
    masks = explanation_maps(maps, (20, 20), FaithfulnessSettings()).masks[:, 0].numpy()
    scores = explanation_scores(network, inputs, maps, torch.full((12,), 3), FaithfulnessSettings())
    whole, masked = scores.original.logit, scores.masked.logit[:, 0]
    targets = [ClassifierOutputTarget(3)] * 12
    drop = torch.from_numpy(DropInConfidence()(inputs, masks, targets, network))
    torch.testing.assert_close(drop, (whole - masked).clamp(min=0))
    increase = torch.from_numpy(PeerIncrease()(inputs, masks, targets, network))
    assert torch.equal(increase, (masked > whole).float())
