"""Explainers leave the model exactly as they found it, also after an error; bad input is named."""

import pytest
import torch
from torch import nn

from repro.explain import (
    AugmentationSettings,
    AugmentedGradCAMPlusPlus,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    ScoreCAM,
    ScoreCAMPlusPlus,
    XGradCAM,
)
from repro.models.class_scores import resolve_target


def augmented(model, layer):
    return AugmentedGradCAMPlusPlus(model, layer, AugmentationSettings(copies=2))


ALL = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, ScoreCAM, ScoreCAMPlusPlus, augmented]


def snapshot(model):
    modules = dict(model.named_modules())
    return (
        {name: module.training for name, module in modules.items()},
        {name: len(module._forward_hooks) + len(module._backward_hooks) for name, module in modules.items()},
        {name: (p.requires_grad, p.grad, p.data_ptr(), p._version) for name, p in model.named_parameters()},
        {name: (b.data_ptr(), b._version) for name, b in model.named_buffers()},
        {name: parameter.stride() for name, parameter in model.named_parameters()},
    )


@pytest.fixture
def mixed(cnn):
    """A network in training mode with a frozen, evaluated stem and a gradient of its own."""
    cnn.train()
    cnn.stem.eval()
    cnn.stem.requires_grad_(False)
    cnn.last.weight.grad = torch.ones_like(cnn.last.weight)
    return cnn


@pytest.mark.parametrize("method", ALL)
def test_the_model_is_left_as_found(method, mixed, images):
    before = snapshot(mixed)
    method(mixed, mixed.rectify).attribute(images)
    assert snapshot(mixed) == before
    assert mixed.last.weight.grad.eq(1).all()


@pytest.mark.parametrize("method", ALL)
def test_the_model_is_left_as_found_after_an_error(method, mixed, images):
    before = snapshot(mixed)

    def fail(*_):
        raise KeyError("injected")

    handle = mixed.head.register_forward_hook(fail)
    with pytest.raises(KeyError, match="injected"):
        method(mixed, mixed.rectify).attribute(images, 0)
    handle.remove()
    assert snapshot(mixed) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ALL)
def test_a_training_network_is_explained_in_evaluation_mode(method, mixed, images):
    training = method(mixed, mixed.rectify).attribute(images, 1)
    torch.testing.assert_close(training, method(mixed.eval(), mixed.rectify).attribute(images, 1), rtol=0, atol=0)


def test_a_foreign_layer_is_refused(cnn):
    with pytest.raises(ValueError, match="no submodule"):
        GradCAM(cnn, nn.Conv2d(3, 3, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("target", "message"),
    [(5, "outside"), (-1, "outside"), ([0, 1], "one class per image"), ([0.5, 1.0, 2.0], "integers")],
)
def test_bad_targets_are_named(target, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        GradCAM(cnn, cnn.rectify).attribute(images, target)


def test_targets_are_resolved():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert resolve_target(None, logits).tolist() == [1, 0]
    assert resolve_target(2, logits).tolist() == [2, 2]
    assert resolve_target([2, 1], logits).tolist() == [2, 1]
    assert resolve_target(torch.tensor([0, 1]), logits).tolist() == [0, 1]
