"""What users of Captum, torchcam and Quantus expect of an explainer."""

import pydoc

import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import nn

from repro.explain import (
    AugmentedGradCAMPlusPlus,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    ScoreCAM,
    ScoreCAMPlusPlus,
    XGradCAM,
)

ALL = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, ScoreCAM, ScoreCAMPlusPlus, AugmentedGradCAMPlusPlus]


class Two(nn.Module):
    """Two image inputs, and a scale that is an argument of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, first, second=None, scale=1.0):
        features = self.conv(first if second is None else first + second).relu()
        return self.head((features * (scale if isinstance(scale, float) else scale[:, None, None, None])).mean((2, 3)))


def test_tuple_inputs_and_additional_arguments_equal_captum(images):
    torch.manual_seed(0)
    model, scales = Two().eval(), torch.tensor([1.0, 2.0, 3.0])
    inputs = (images, images.flip(3))
    captum = LayerGradCam(model, model.conv).attribute(inputs, 1, scales, relu_attributions=True)
    ours = GradCAM(model, "conv")
    torch.testing.assert_close(ours.attribute_lowres(inputs, 1, scales), captum.detach())
    torch.testing.assert_close(ours.attribute_lowres(inputs, 1, scales, batch_size=2), captum.detach())


@pytest.mark.parametrize("method", [ScoreCAM, ScoreCAMPlusPlus])
def test_score_cam_passes_additional_arguments_with_their_images(method, images):
    torch.manual_seed(0)
    model, scales = Two().eval(), torch.tensor([1.0, 2.0, 3.0])
    together = method(model, "conv").attribute(images, 1, (images.flip(3), scales))
    for index in range(3):
        part = slice(index, index + 1)
        alone = method(model, "conv").attribute(images[part], 1, (images.flip(3)[part], scales[part]))
        torch.testing.assert_close(together[part], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="additional_forward_args"):
        method(model, "conv").attribute((images, images), 1)


@pytest.mark.parametrize("relu", [True, False])
def test_layer_input_and_signed_maps_equal_captum(relu, cnn, images):
    captum = LayerGradCam(cnn, cnn.last).attribute(images, 2, attribute_to_layer_input=True, relu_attributions=relu)
    ours = GradCAM(cnn, "last").attribute_lowres(images, 2, attribute_to_layer_input=True, relu_attributions=relu)
    torch.testing.assert_close(ours, captum.detach())


def test_noise_tunnel_takes_our_explainers(cnn, images):
    torch.manual_seed(0)
    smooth = NoiseTunnel(GradCAM(cnn, "rectify")).attribute(images, nt_samples=4, stdevs=1e-4, target=1)
    torch.testing.assert_close(smooth, GradCAM(cnn, "rectify").attribute(images, 1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", [GradCAM, ScoreCAMPlusPlus])
def test_captums_metrics_take_our_explainers(method, cnn, images):
    explainer = method(cnn, "rectify")

    def explain(inputs, **options):
        return (explainer.attribute(inputs, **options),)  # Captum's own layer methods need the tuple as well

    assert sensitivity_max(explain, images, target=1, n_perturb_samples=2).shape == (3,)
    maps = explainer.attribute(images, 1).expand_as(images)

    def perturb(inputs):
        noise = 0.01 * torch.randn_like(inputs)
        return noise, inputs - noise

    assert infidelity(cnn, perturb, images, maps, target=1).isfinite().all()


@pytest.mark.parametrize("method", ALL)
def test_help_is_ours(method):
    text = pydoc.render_doc(method, renderer=pydoc.plaintext)
    assert "device_ids" not in text
    assert ">>>" in method.__doc__


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM])
def test_several_layers_by_name_at_once(method, cnn, images):
    block, rectify = method(cnn, ["block", cnn.rectify]).attribute(images, 1)
    torch.testing.assert_close(block, method(cnn, "block").attribute(images, 1))
    torch.testing.assert_close(rectify, method(cnn, "rectify").attribute(images, 1))
    with pytest.raises(ValueError, match="did you mean 'rectify'"):
        method(cnn, "rectifi")


def test_quantus_takes_our_maps(cnn, images):
    quantus = pytest.importorskip("quantus")

    def explain(model, inputs, targets, **_):
        return GradCAM(model, "rectify").attribute(torch.as_tensor(inputs), targets).numpy()

    metric = quantus.PixelFlipping(features_in_step=64, disable_warnings=True)
    assert metric(cnn, images.numpy(), torch.tensor([1, 2, 3]).numpy(), explain_func=explain)
