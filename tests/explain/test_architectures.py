"""Networks of torchvision and timm, whoever wrote them: a map on the right grid, or a refusal that names the cure."""

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from repro.explain import EngineSettings, GradCAM, ScoreCAMPlusPlus, layers
from repro.explain.layer import ModelInputs

FEW = {  # name → input size; one of a family each
    "torchvision:resnet18": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:swin_t": 64,
    "torchvision:vit_b_32": 224,
    "timm:convnext_atto": 64,
    "timm:tf_efficientnet_lite0": 64,
    "timm:mixer_s32_224": 224,
    "timm:deit_tiny_distilled_patch16_224": 224,
}
MANY = {
    **dict.fromkeys(
        (
            "torchvision:alexnet", "torchvision:vgg11_bn", "torchvision:squeezenet1_1", "torchvision:densenet121",
            "torchvision:googlenet", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v2",
            "torchvision:mnasnet0_5", "torchvision:efficientnet_b0", "torchvision:regnet_y_400mf",
            "torchvision:convnext_tiny", "torchvision:swin_v2_t", "timm:resnet10t", "timm:seresnet18",
            "timm:res2net50_14w_8s", "timm:ghostnet_050", "timm:repvgg_a0", "timm:dla34", "timm:hardcorenas_a",
            "timm:lcnet_050", "timm:mobileone_s0", "timm:rexnet_100", "timm:tinynet_e", "timm:vovnet39a",
            "timm:edgenext_xx_small", "timm:efficientvit_m0", "timm:fastvit_t8", "timm:poolformer_s12",
            "timm:pvt_v2_b0",
        ),
        128,
    ),
    **dict.fromkeys(
        (
            "torchvision:maxvit_t", "timm:vit_tiny_patch16_224", "timm:cait_xxs24_224", "timm:pit_ti_224",
            "timm:volo_d1_224", "timm:crossvit_tiny_240", "timm:levit_128s", "timm:gmlp_s16_224", "timm:resmlp_12_224",
            "timm:xcit_nano_12_p16_224", "timm:tnt_s_patch16_224", "timm:coat_tiny",
        ),
        224,
    ),
    "torchvision:inception_v3": 128,
}  # fmt: skip


def build(name):
    library, _, model = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        auxiliary = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(model, weights=None, num_classes=10, **auxiliary)
    else:
        network = timm.create_model(model, pretrained=False, num_classes=10)
    for parameter in network.parameters():
        if parameter.ndim == 2 and len(parameter) == 10:
            nn.init.normal_(parameter)  # heads that start at zero show nothing
    return network.eval()


@torch.no_grad()
def moved(network, info, image, corner):
    """Where on the grid the activation changes when the first or last ninth of the image is occluded: 0..1 each way."""
    rows, columns = image.shape[2] // 3, image.shape[3] // 3
    occluded = image.clone()
    part = (slice(-rows, None), slice(-columns, None)) if corner else (slice(rows), slice(columns))
    occluded[..., part[0], part[1]] = 0
    (reader,) = GradCAM(network, info.name).readers
    before, after = (reader.read(ModelInputs.of(x), differentiable=False).activation for x in (image, occluded))
    change = (before - after).abs().sum(1)[0]
    down, right = (torch.linspace(0, 1, side) for side in change.shape)
    return float((change.sum(1) * down).sum() / change.sum()), float((change.sum(0) * right).sum() / change.sum())


def check(name, size):
    network = build(name)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = [info for info in layers(network, image) if info.connected and min(info.grid) > 1]
    assert found, f"{name}: no layer offered"
    # The map of the deepest offered layer, and the grid of one in the middle, where an occlusion is still local.
    for info in {found[-1].name: found[-1], found[len(found) // 2].name: found[len(found) // 2]}.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cam = GradCAM(network, info.name).attribute_lowres(image, 1)
        assert cam.shape == (1, 1, *info.grid)
        assert cam.isfinite().all()
    early = found[len(found) // 4]
    top, bottom = moved(network, early, image, corner=False), moved(network, early, image, corner=True)
    assert top[0] < bottom[0] and top[1] < bottom[1], f"{name} {early}: {top} {bottom}"


@pytest.mark.parametrize("name", FEW)
def test_a_map_on_the_right_grid(name):
    check(name, FEW[name])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MANY)
def test_a_map_on_the_right_grid_of_many_more(name):
    check(name, MANY[name])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:tf_efficientnet_lite0"])
def test_the_rewritten_copy_agrees_with_the_network(name):
    network = build(name)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layer = next(
        info.name for info in layers(network, image) if info.channels <= 64 and info.connected and not info.negative
    )
    plain = EngineSettings(fold_batch_norm=False, fuse_convolutions=False, channels_last=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ScoreCAMPlusPlus(network, layer, engine=plain).attribute(image, 1)
        torch.testing.assert_close(ScoreCAMPlusPlus(network, layer).attribute(image, 1), expected, rtol=1e-3, atol=1e-4)
