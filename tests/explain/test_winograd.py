"""Minimal filtering equals the direct convolution, and is used only where it computes the same thing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro.explain import EngineSettings, ScoreCAM
from repro.explain.masked_network import inference_copy, traced
from repro.explain.winograd import WinogradConv2d, pays, replace_convolutions


@pytest.mark.parametrize("size", [(3, 3), (3, 5), (4, 4), (7, 7), (13, 10)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0)])
def test_it_equals_the_direct_convolution(size, padding):
    torch.manual_seed(0)
    convolution = nn.Conv2d(5, 7, 3, padding=padding).double()
    images = torch.randn(3, 5, *size, dtype=torch.float64)
    torch.testing.assert_close(WinogradConv2d(convolution)(images), convolution(images), rtol=1e-10, atol=1e-10)


def test_an_impulse_returns_the_filter():
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    convolution.weight = nn.Parameter(torch.arange(9.0).view(1, 1, 3, 3))
    impulse = F.pad(torch.ones(1, 1, 1, 1), (2, 2, 2, 2))
    expected = F.pad(torch.arange(8.0, -1.0, -1.0).view(1, 1, 3, 3), (1, 1, 1, 1))
    torch.testing.assert_close(WinogradConv2d(convolution)(impulse), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "reflect"},
        {"padding": "same"},
        {"kernel_size": 5},
    ],
)
def test_other_convolutions_are_left_alone(options):
    assert pays(nn.Conv2d(128, 128, 3, padding=1))
    assert not pays(nn.Conv2d(128, 128, **{"kernel_size": 3, "padding": 1, **options}))
    assert not pays(nn.Conv2d(64, 128, 3)), "too few channels"
    assert not pays(nn.Conv2d(128, 128, 3).bfloat16())


class Wide(nn.Module):
    """A wide convolution, and one whose weight is also read directly."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, padding=1)
        self.wide = nn.Conv2d(128, 128, 3, padding=1)
        self.tied = nn.Conv2d(128, 128, 3, padding=1)

    def forward(self, images):
        features = self.wide(self.stem(images).relu()).relu()
        return self.tied(features).mean((2, 3)) * self.tied.weight.mean()


def test_score_cam_uses_it_and_its_maps_stay_the_same():
    torch.manual_seed(0)
    model, images = Wide().eval(), torch.randn(1, 3, 16, 16)
    graph = traced(inference_copy(model))
    replace_convolutions(graph)
    assert [type(graph.get_submodule(name)) for name in ("wide", "tied")] == [WinogradConv2d, nn.Conv2d]
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)
    ours = ScoreCAM(model, model.stem).attribute(images, 1)
    plain = ScoreCAM(model, model.stem, engine=EngineSettings(fewer_operations=False)).attribute(images, 1)
    assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()
