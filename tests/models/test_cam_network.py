"""CAM networks: map sizes, maps and logits agree, pretrained weights reach the backbone unchanged."""

from collections.abc import Callable

import pytest
import torch
from torchvision import models

from repro.models import (
    CAMNetwork,
    alexnet_gap,
    googlenet_cam,
    inception_v3_cam,
    route_batch_norm,
    small_cam,
    small_inception,
    squeezenet_cam,
    to_dual_batch_norm,
    vgg16_cam,
)

BUILDERS = {
    "vgg16": lambda **options: vgg16_cam(5, **options),
    "googlenet": lambda **options: googlenet_cam(5, **options),
    "inception_v3": lambda **options: inception_v3_cam(5, **options),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("side", [14, 28])
def test_maps_have_the_asked_side_and_their_means_are_the_logits(name: str, side: int) -> None:
    network = BUILDERS[name](feature_map=side).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits, maps, _ = network.cam(images)
        assert torch.equal(network(images), logits)
    assert maps.shape == (1, 5, side, side)
    assert torch.allclose(maps.mean((2, 3)), logits, atol=1e-5)


@pytest.mark.parametrize("size,side", [(64, 8), (112, 14)])
@pytest.mark.parametrize("build", [small_cam, small_inception])
def test_small_networks_divide_the_side_by_eight(size: int, side: int, build: Callable[..., CAMNetwork]) -> None:
    assert build(4, width=4).cam(torch.randn(2, 3, size, size)).maps.shape == (2, 4, side, side)


def test_small_inception_has_named_stages_and_batch_norms_to_double() -> None:
    network = small_inception(4, width=8)
    assert [name for name in network.backbone._modules if name.startswith("inception")] == [
        "inception3a",
        "inception3b",
        "inception4a",
        "inception4b",
    ]
    assert 1e5 < sum(parameter.numel() for parameter in network.parameters()) < 5e5
    to_dual_batch_norm(network)
    with route_batch_norm(network, "mixed"):
        assert network.cam(torch.randn(2, 3, 32, 32)).logits.shape == (2, 4)


def test_alexnet_gap_is_torchvisions_alexnet_up_to_conv5() -> None:
    reference = models.alexnet().eval()
    network = alexnet_gap(4, weights=reference.state_dict()).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(network.backbone(images), reference.features[:-1](images))
        assert network.cam(images).maps.shape == (1, 4, 13, 13)
    assert list(network.backbone._modules) == ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5"]


def test_squeezenet_maps_are_13_by_13() -> None:
    assert squeezenet_cam(4, width=8).cam(torch.randn(1, 3, 224, 224)).maps.shape == (1, 4, 13, 13)


def test_linear_head_weights_the_features_as_equation_3() -> None:
    network = small_cam(3, width=4, head="cam").eval()
    torch.nn.init.normal_(network.classifier.bias)
    images = torch.randn(2, 3, 32, 32)
    logits, maps, _ = network.cam(images)
    weight, features = network.classifier.weight, network.features(images)
    assert torch.allclose(maps[1, 2], (weight[2, :, None, None] * features[1]).sum(0), atol=1e-5)
    assert torch.equal(network(images), logits)
    assert torch.allclose(maps.mean((2, 3)) + network.classifier.bias, logits, atol=1e-5)


def test_vgg_backbone_is_torchvisions_up_to_conv5_3() -> None:
    reference = models.vgg16_bn(init_weights=False).eval()
    network = vgg16_cam(3, weights=reference.state_dict()).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(network.backbone(images), reference.features[:-1](images))
    assert list(network.backbone._modules)[-2:] == ["pool4", "conv5"]


def test_googlenet_accepts_imagenet_normalisation_as_torchvisions_pretrained_one() -> None:
    reference = models.googlenet(aux_logits=False, init_weights=False, transform_input=True).eval()
    network = googlenet_cam(3, weights=reference.state_dict()).eval()
    images, seen = torch.randn(1, 3, 64, 64), []
    reference.inception4e.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        reference(images)
        assert torch.allclose(network.backbone(images), seen[0], atol=1e-5)


def test_auxiliary_classifier_entries_of_a_checkpoint_are_left_out() -> None:
    checkpoint = models.googlenet(aux_logits=True, init_weights=False).state_dict()
    assert isinstance(googlenet_cam(3, weights=checkpoint), CAMNetwork)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_and_weights_are_named() -> None:
    with pytest.raises(ValueError, match="feature_map is 7"):
        vgg16_cam(3, feature_map=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="missing"):
        squeezenet_cam(3, weights={"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="classes is 0"):
        small_cam(0)


def test_branches_see_their_stage_and_leave_the_plain_outputs_alone() -> None:
    network = small_cam(3, width=4).eval()
    images = torch.randn(2, 3, 32, 32)
    before, names = network.cam(images), set(network.state_dict())
    assert before.auxiliary == {}
    network.add_branch("early", torch.nn.Identity(), stage="pool2")
    network.add_branch("late", torch.nn.Identity(), stage="neck")
    network.add_branch("kept", torch.nn.Linear(2, 2))
    logits, maps, auxiliary = network.cam(images)
    assert torch.equal(logits, before.logits) and torch.equal(maps, before.maps)
    assert torch.equal(auxiliary["early"], network.backbone[:4](images))
    assert torch.equal(auxiliary["late"], network.features(images)) and set(auxiliary) == {"early", "late"}
    assert set(network.state_dict()) - names == {"branches.kept.weight", "branches.kept.bias"}
    with pytest.raises(ValueError, match="'kept' already"):
        network.add_branch("kept", torch.nn.Identity())
    with pytest.raises(ValueError, match=r"no stage 'conv9'; expected one of conv1, .*neck"):
        network.add_branch("other", torch.nn.Identity(), stage="conv9")
