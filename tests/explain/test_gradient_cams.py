"""Gradient methods: Captum and torchcam as oracles, identities, hand-computed weights."""

import pytest
import torch
from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import LayerGradCam
from torch import Tensor, nn

from repro.explain import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from repro.explain.gradient import gradcam_plus_plus_weights, xgradcam_weights

ALL = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM]


@pytest.mark.parametrize("layer", ["rectify", "last", "block"])
@pytest.mark.parametrize("network", ["cnn", "gap_cnn"])
def test_gradcam_equals_captum_on_a_cnn(network, layer, images, request):
    model = request.getfixturevalue(network)
    target = torch.tensor([0, 4, 2])
    captum = LayerGradCam(model, getattr(model, layer)).attribute(images, target, relu_attributions=True)
    ours = GradCAM(model, getattr(model, layer)).attribute_lowres(images, target)
    torch.testing.assert_close(ours, captum.detach(), atol=1e-6, rtol=1e-6)


def test_gradcam_equals_captum_on_a_vit(vit, images):
    layer = vit.encoder.layers[-1].ln_1
    gradients, activations = compute_layer_gradients_and_eval(vit, layer, images, 1)
    gradient, activation = (t[0][:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for t in (gradients, activations))
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).relu()
    ours = GradCAM(vit, layer).attribute_lowres(images, 1)
    assert ours.shape == (3, 1, 4, 4)
    torch.testing.assert_close(ours, expected.detach(), atol=1e-6, rtol=1e-6)


def test_xgradcam_equals_gradcam_on_a_gap_head(gap_cnn, images):
    grad = GradCAM(gap_cnn, gap_cnn.rectify).attribute(images, 2)
    xgrad = XGradCAM(gap_cnn, gap_cnn.rectify).attribute(images, 2)
    assert grad.amax() > 0
    torch.testing.assert_close(xgrad, grad, atol=1e-6, rtol=1e-5)


def test_xgradcam_differs_from_gradcam_on_a_connected_head(cnn, images):
    layer = cnn.rectify
    difference = XGradCAM(cnn, layer).attribute(images, 2) - GradCAM(cnn, layer).attribute(images, 2)
    assert difference.abs().amax() > 1e-4


def test_gradcam_plus_plus_weights_by_hand():
    # S = 1 + 3 = 4. g = (0.5, -1): α = .25/(2·.25 + 4·.125) = .25, and the negative gradient is cut off.
    activation = torch.tensor([[[[1.0, 3.0]]]])
    gradient = torch.tensor([[[[0.5, -1.0]]]])
    assert gradcam_plus_plus_weights(activation, gradient).item() == pytest.approx(0.25 * 0.5)


def test_gradcam_plus_plus_is_defined_where_the_gradient_vanishes():
    activation = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])
    gradient = torch.tensor([[[[0.0, 0.0]], [[1e-25, 0.0]]]])
    # 1e-50 underflows in float32; α tends to 1/2 for small gradients.
    weights = gradcam_plus_plus_weights(activation, gradient)
    assert weights.flatten().tolist() == pytest.approx([0.0, 0.5e-25])


def test_xgradcam_weights_by_hand_and_for_a_dead_channel():
    activation = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])
    gradient = torch.tensor([[[[0.5, -1.0]], [[7.0, 7.0]]]])
    assert xgradcam_weights(activation, gradient).flatten().tolist() == pytest.approx([(0.5 - 3) / 4, 0.0])


def test_layercam_by_hand():
    activation = torch.tensor([[[[1.0, 3.0]], [[2.0, 4.0]]]])
    gradient = torch.tensor([[[[0.5, -1.0]], [[1.0, 0.25]]]])
    cam = LayerCAM.combine(None, activation, gradient)
    assert cam.flatten().tolist() == pytest.approx([0.5 + 2, 0 + 1])


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("network", ["cnn", "vit"])
def test_maps_are_nonnegative_at_input_size_and_signed_ones_agree(method, network, images, request):
    model = request.getfixturevalue(network)
    explainer = method(model, model.rectify if network == "cnn" else model.encoder.layers[-1].ln_1)
    maps = explainer.attribute(images)
    assert maps.shape == (3, 1, 32, 32)
    assert maps.amin() >= 0
    signed = explainer.attribute_lowres(images, relu_attributions=False)
    torch.testing.assert_close(signed.relu(), explainer.attribute_lowres(images), rtol=0, atol=0)


@pytest.mark.parametrize("method", ALL)
def test_batches_do_not_change_the_map(method, cnn, images):
    explainer = method(cnn, cnn.rectify)
    whole = explainer.attribute(images, [0, 1, 2])
    torch.testing.assert_close(explainer.attribute(images, [0, 1, 2], batch_size=1), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [GradCAM, XGradCAM, LayerCAM])  # torchcam's Grad-CAM++ loses its division
def test_agrees_with_torchcam(method, cnn, images):
    torchcam = pytest.importorskip("torchcam.methods")
    image = images[:1]
    with getattr(torchcam, method.__name__)(cnn, "rectify") as extractor:
        theirs = extractor(3, cnn(image), normalized=False)[0]
    ours = method(cnn, cnn.rectify).attribute_lowres(image, 3)[0]
    torch.testing.assert_close(ours, theirs.relu(), rtol=1e-4, atol=1e-6)


def test_an_in_place_relu_behind_the_layer_leaves_the_activation_alone(cnn, images):
    negative_kept = GradCAM(cnn, cnn.last).attribute_lowres(images, 1, relu_attributions=False)
    cnn.rectify.inplace = False
    torch.testing.assert_close(
        GradCAM(cnn, cnn.last).attribute_lowres(images, 1, relu_attributions=False), negative_kept, rtol=0, atol=0
    )
    rectified = GradCAM(cnn, cnn.rectify).attribute_lowres(images, 1, relu_attributions=False)
    assert (rectified - negative_kept).abs().amax() > 1e-4


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context, cnn, images):
    expected = GradCAM(cnn, cnn.rectify).attribute(images, 1)
    with context():
        inside = GradCAM(cnn, cnn.rectify).attribute(images.clone(), 1)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(inside, expected, rtol=1e-6, atol=1e-7)


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(self.conv(images)).mean((2, 3))


def test_a_layer_that_runs_twice_is_refused(images):
    model = _Twice()
    with pytest.raises(ValueError, match="ran 2 times.*call="):
        GradCAM(model, model.conv).attribute(images, 0)


def test_reshape_overrides_the_detected_grid(vit, images):
    layer = vit.encoder.layers[-1].ln_1
    wide = GradCAM(vit, layer, reshape=lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (2, 8)))
    assert wide.attribute_lowres(images).shape == (3, 1, 2, 8)
