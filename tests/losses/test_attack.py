"""The attack stays in its ball, leaves the network alone and raises the loss."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from repro.data.images import IMAGENET
from repro.losses import AttackSettings, pgd_attack
from repro.models import route_batch_norm, small_cam, to_dual_batch_norm

MEAN, STD = torch.tensor(IMAGENET.mean).view(3, 1, 1), torch.tensor(IMAGENET.std).view(3, 1, 1)


def normalise(pixels: Tensor) -> Tensor:
    return (pixels - MEAN) / STD


def pixels_of(images: Tensor) -> Tensor:
    return images * STD + MEAN


def dual_network() -> nn.Module:
    network = to_dual_batch_norm(small_cam(3, width=4))
    with route_batch_norm(network, "mixed"):
        network(torch.randn(8, 3, 32, 32))
    return network


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0, 16),
    step=st.floats(0, 20),
    steps=st.integers(1, 3),
    start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pixels_never_leave_the_ball_nor_the_range(
    epsilon: float, step: float, steps: int, start: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    pixels = torch.rand(2, 3, 8, 8).round(decimals=1)  # many pixels exactly at 0 and 1
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    attack = AttackSettings(epsilon=epsilon, step=step, steps=steps, random_start=start)
    moved = pixels_of(pgd_attack(network, normalise(pixels), torch.tensor([0, 2]), attack))
    assert (moved - pixels).abs().max() <= epsilon / 255 + 1e-6
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6


def test_one_step_is_the_sign_of_the_gradient_in_pixels() -> None:
    weight = torch.randn(2, 12)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False))
    network[1].weight.data = weight
    pixels = torch.full((1, 3, 2, 2), 0.5)
    attack = AttackSettings(epsilon=1, step=1, random_start=False)
    moved = pixels_of(pgd_attack(network, normalise(pixels), torch.tensor([0]), attack))
    expected = 0.5 + (weight[1] - weight[0]).sign().view(1, 3, 2, 2) / 255  # away from the true class
    assert torch.allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_eval_attack_leaves_the_network_exactly_as_it_was(training: bool) -> None:
    network = dual_network().train(training)
    network.neck.eval()
    network.classifier.weight.requires_grad_(False)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    modes = [layer.training for layer in network.modules()]
    pgd_attack(network, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), AttackSettings(steps=2))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert gradients
    for name, value in network.named_parameters():
        assert value.requires_grad == (name != "classifier.weight")
        assert (value.grad is None) == (name not in gradients)
        assert value.grad is None or torch.equal(value.grad, gradients[name])
    assert [layer.training for layer in network.modules()] == modes


@pytest.mark.usefixtures("unchecked")
def test_the_network_is_restored_after_an_error() -> None:
    network = dual_network().train()
    with pytest.raises(ValueError):
        pgd_attack(network, torch.randn(2, 3, 32, 32), torch.zeros(3, dtype=torch.int64), AttackSettings())
    assert network.training and all(weight.requires_grad for weight in network.parameters())
    assert {layer.route for layer in network.modules() if hasattr(layer, "route")} == {"clean"}


def test_no_weight_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network, needed = dual_network(), []
    network.register_forward_pre_hook(lambda *_: needed.extend(w.requires_grad for w in network.parameters()))
    pgd_attack(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), AttackSettings())
    assert needed and not any(needed)


def test_the_attack_is_that_of_float32_also_in_a_bfloat16_training() -> None:
    network, images, labels = dual_network().eval(), torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    attack = AttackSettings(random_start=False)
    expected = pgd_attack(network, images, labels, attack)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pgd_attack(network, images, labels, attack), expected)
        rounded = pgd_attack(network, images, labels, replace(attack, precision="training"))
    assert (rounded != expected).float().mean() > 0.02


def test_the_attack_goes_through_the_auxiliary_half() -> None:
    network = dual_network().eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    attack = AttackSettings(random_start=False)
    before = pgd_attack(network, images, labels, attack)
    for layer in network.modules():
        if hasattr(layer, "route"):
            layer.running_mean += 5  # the main half
    assert torch.equal(pgd_attack(network, images, labels, attack), before)
    for layer in network.modules():
        if hasattr(layer, "route"):
            layer.auxiliary.bias.data += torch.randn_like(layer.auxiliary.bias)
    assert not torch.equal(pgd_attack(network, images, labels, attack), before)


def test_released_attack_moves_the_auxiliary_statistics_but_not_the_main_ones() -> None:
    network = dual_network().train()
    main = {k: v.clone() for k, v in network.state_dict().items() if "running" in k and "auxiliary" not in k}
    auxiliary = network.backbone.conv1[1].auxiliary.running_mean.clone()
    pgd_attack(network, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), AttackSettings.released())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in main.items())
    assert not torch.equal(network.backbone.conv1[1].auxiliary.running_mean, auxiliary)


def test_released_attack_clamps_the_normalised_tensor_itself() -> None:
    images = torch.tensor([-2.0, 0.5, 2.4]).repeat(4, 1).T.reshape(1, 3, 2, 2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    moved = pgd_attack(network, images, torch.tensor([0]), AttackSettings.released())
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved[0, 0] == 0).all()  # -2 ± 1 is below 0 everywhere: 2 away from the image, outside the ball of 1
    assert (moved[0, 2] == 1).all()


def test_advprop_series_of_figure_7() -> None:
    assert [AttackSettings.advprop(e).steps for e in (1, 2, 3, 4)] == [1, 3, 4, 5]
    assert AttackSettings.advprop(3).epsilon == 3.0


@pytest.mark.parametrize("field", [{"epsilon": -1.0}, {"steps": 0}, {"step": -0.1}])
def test_impossible_settings_are_rejected(field: dict) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        AttackSettings(**field)


def test_the_loss_rises_on_nearly_every_image_of_a_trained_network() -> None:
    torch.manual_seed(0)
    prototypes, labels = torch.rand(3, 3, 32, 32), torch.arange(3).repeat(16)
    pixels = (prototypes[labels] * 0.15 + 0.35 + 0.3 * torch.rand(48, 3, 32, 32)).clamp(0, 1)
    network = to_dual_batch_norm(small_cam(3, width=8))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    images = normalise(pixels)
    for _ in range(40):
        with route_batch_norm(network, "mixed"):
            # Smoothed labels keep the losses away from zero, where float32 could not show a rise.
            loss = F.cross_entropy(network(images.repeat(2, 1, 1, 1)), labels.repeat(2), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    moved = pgd_attack(network, images, labels, AttackSettings())
    with route_batch_norm(network, "adversarial"), torch.no_grad():
        rise = F.cross_entropy(network(moved), labels, reduction="none") - F.cross_entropy(
            network(images), labels, reduction="none"
        )
    assert (network(images).argmax(1) == labels).float().mean() > 0.9, "the test needs a trained network"
    assert (rise > 0).float().mean() >= 0.95
