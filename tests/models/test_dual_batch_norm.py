"""Dual batch norm: routes, conversion of every layer, export, and statistics over processes."""

import copy

import pytest
import torch
from torch import nn

from repro.models import (
    DualBatchNorm2d,
    googlenet_cam,
    route_batch_norm,
    small_cam,
    to_dual_batch_norm,
    vgg16_cam,
)


def trained_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm(torch.randn(8, 3, 4, 4) * 2 + 1)
    return norm


def dual_of(norm: nn.BatchNorm2d) -> DualBatchNorm2d:
    dual = to_dual_batch_norm(nn.Sequential(copy.deepcopy(norm)))[0]
    assert isinstance(dual, DualBatchNorm2d)
    return dual


def test_both_halves_start_as_copies() -> None:
    norm, features = trained_norm(), torch.randn(4, 3, 2, 2)
    dual = dual_of(norm).eval()
    expected = norm.eval()(features)
    for route in ("clean", "adversarial", "mixed"):
        with route_batch_norm(dual, route):
            assert torch.equal(dual(features), expected)


def test_mixed_route_normalises_each_half_with_its_own_batch() -> None:
    norm = trained_norm()
    dual, clean, adversarial = dual_of(norm), torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2) * 5 + 3
    first, second = copy.deepcopy(norm), copy.deepcopy(norm)
    with route_batch_norm(dual, "mixed"):
        output = dual(torch.cat([clean, adversarial]))
    assert torch.equal(output, torch.cat([first(clean), second(adversarial)]))
    assert torch.equal(dual.running_mean, first.running_mean)
    assert torch.equal(dual.auxiliary.running_mean, second.running_mean)


def test_adversarial_route_leaves_the_main_statistics_alone() -> None:
    dual = dual_of(trained_norm())
    before = dual.running_mean.clone()
    with route_batch_norm(dual, "adversarial"):
        dual(torch.randn(4, 3, 2, 2) + 9)
    assert torch.equal(dual.running_mean, before)
    assert not torch.equal(dual.auxiliary.running_mean, before)


def test_routes_are_restored_after_an_error_and_nest() -> None:
    dual = dual_of(trained_norm())
    with pytest.raises(ValueError, match="3 images"), route_batch_norm(dual, "mixed"):
        with route_batch_norm(dual, "adversarial"):
            pass
        assert dual.route == "mixed"
        dual(torch.randn(3, 3, 2, 2))
    assert dual.route == "clean"


@pytest.mark.parametrize("build,count", [(lambda: vgg16_cam(2), 13), (lambda: googlenet_cam(2), 45)])
def test_every_batch_norm_is_converted(build, count: int) -> None:
    network = to_dual_batch_norm(build())
    norms = [layer for layer in network.modules() if type(layer) is nn.BatchNorm2d]
    assert not norms
    assert sum(isinstance(layer, DualBatchNorm2d) for layer in network.modules()) == count


@pytest.mark.parametrize(
    "model,message",
    [
        (vgg16_cam(2, batch_norm="none"), "no batch norm"),
        (nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2)), "'1' is a BatchNorm1d"),
        (nn.Sequential(nn.SyncBatchNorm(2)), "SyncBatchNorm"),
        (nn.Sequential(DualBatchNorm2d(2)), "'0' is a DualBatchNorm2d"),
    ],
)
def test_what_cannot_be_converted_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dual_batch_norm(model)


def test_routing_without_dual_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="to_dual_batch_norm"), route_batch_norm(small_cam(2), "mixed"):
        pass


def test_a_shared_layer_stays_shared() -> None:
    norm = nn.BatchNorm2d(2)
    model = to_dual_batch_norm(nn.Sequential(norm, nn.Sequential(norm)))
    assert model[0] is model[1][0]
