"""Every listed shape of Tables A.3–A.8, and what a deactivated channel is."""

import pytest
import torch
from torch import Tensor, nn

from repro.models import (
    FEATURE_GAN_SHAPES,
    FeatureDiscriminator,
    FeatureGenerator,
    lenet5,
    split_classifier,
    vgg16_32,
)
from repro.models.split_classifier import Architecture, HalvingMaxPool


def output_shapes(network: nn.Module, *inputs: Tensor) -> dict[str, tuple[int, ...]]:
    """Name → output shape (without the batch axis) of every leaf module."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        for name, module in network.named_modules()
        if name
    ]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return shapes


CLASSIFIER_TABLES: dict[Architecture, tuple[tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "lenet5": (  # Table A.3
        (1, 32, 32),
        {
            "extractor.layers.conv1": (6, 28, 28),
            "extractor.layers.pool1": (6, 14, 14),
            "classifier.body.conv2": (16, 10, 10),
            "classifier.body.pool2": (16, 5, 5),
            "classifier.body.fc1": (120,),
            "classifier.body.fc2": (84,),
            "classifier.head": (10,),
        },
    ),
    "vgg16_32": (  # Table A.5
        (3, 32, 32),
        {
            "extractor.layers.conv1_1": (64, 32, 32),
            "extractor.layers.conv1_2": (64, 32, 32),
            "extractor.layers.pool1": (64, 16, 16),
            "classifier.body.conv2_2": (128, 16, 16),
            "classifier.body.pool2": (128, 8, 8),
            "classifier.body.conv3_3": (256, 8, 8),
            "classifier.body.pool3": (256, 4, 4),
            "classifier.body.conv4_3": (512, 4, 4),
            "classifier.body.pool4": (512, 2, 2),
            "classifier.body.conv5_3": (512, 2, 2),
            "classifier.body.pool5": (512, 1, 1),
            "classifier.body.enlarge": (512, 7, 7),
            "classifier.body.fc1": (4096,),
            "classifier.body.fc2": (512,),
            "classifier.head": (10,),
        },
    ),
    "resnet50": (  # Table A.7, with 56 where it prints 55
        (3, 224, 224),
        {
            "extractor.layers.conv1": (64, 112, 112),
            "extractor.layers.bn1": (64, 112, 112),
            "extractor.layers.maxpool": (64, 56, 56),
            "extractor.layers.layer1": (256, 56, 56),
            "classifier.body.layer2": (512, 28, 28),
            "classifier.body.layer3": (1024, 14, 14),
            "classifier.body.layer4": (2048, 7, 7),
            "classifier.body.avgpool": (2048, 1, 1),
            "classifier.head": (10,),
        },
    ),
}

GENERATOR_TABLES: dict[Architecture, tuple[int, list[tuple[int, int, int]]]] = {
    "lenet5": (110, [(128, 4, 4), (48, 9, 9), (12, 11, 11), (6, 14, 14)]),  # Table A.4
    "vgg16_32": (110, [(128, 4, 4), (128, 8, 8), (128, 16, 16), (64, 17, 17), (64, 16, 16)]),  # Table A.6
    "resnet50": (4910, [(512, 4, 4), (512, 8, 8), (256, 16, 16), (256, 30, 30), (256, 56, 56)]),  # Table A.8
}

CRITIC_TABLES: dict[Architecture, tuple[list[tuple[int, int, int]], int]] = {
    "lenet5": ([(32, 7, 7), (64, 4, 4), (128, 2, 2)], 512),
    "vgg16_32": ([(32, 8, 8), (64, 4, 4), (128, 2, 2)], 512),
    "resnet50": ([(32, 28, 28), (64, 14, 14), (128, 7, 7)], 6272),
}


@pytest.mark.parametrize("architecture", CLASSIFIER_TABLES)
def test_classifier_shapes_are_those_of_the_tables(architecture: Architecture) -> None:
    image, expected = CLASSIFIER_TABLES[architecture]
    network = split_classifier(architecture, classes=10).eval()
    shapes = output_shapes(network, torch.zeros(1, *image))
    assert {name: shapes[name] for name in expected} == expected
    shape = FEATURE_GAN_SHAPES[architecture]
    assert shapes["extractor"] == (shape.feature_channels, shape.feature_side, shape.feature_side)


@pytest.mark.parametrize("architecture", GENERATOR_TABLES)
def test_generator_shapes_are_those_of_the_tables(architecture: Architecture) -> None:
    inputs, maps = GENERATOR_TABLES[architecture]
    shape = FEATURE_GAN_SHAPES[architecture]
    generator = FeatureGenerator(shape, classes=10).eval()
    assert generator.project.in_features == inputs
    assert generator.project.out_features == 16 * maps[0][0]
    shapes = output_shapes(
        generator, torch.zeros(1, shape.noise), torch.eye(10)[:1], torch.ones(1, shape.feature_channels)
    )
    deconvolved = [s for name, s in shapes.items() if isinstance(generator.get_submodule(name), nn.ConvTranspose2d)]
    normed = [s for name, s in shapes.items() if isinstance(generator.get_submodule(name), nn.BatchNorm2d)]
    assert deconvolved == maps[1:]
    assert normed == maps[1:]


@pytest.mark.parametrize("architecture", CRITIC_TABLES)
def test_critic_shapes_are_those_of_the_tables(architecture: Architecture) -> None:
    maps, flat = CRITIC_TABLES[architecture]
    shape = FEATURE_GAN_SHAPES[architecture]
    critic = FeatureDiscriminator(shape)
    features = torch.zeros(2, shape.feature_channels, shape.feature_side, shape.feature_side)
    shapes = output_shapes(critic, features)
    assert [s for name, s in shapes.items() if isinstance(critic.get_submodule(name), nn.Conv2d)] == maps
    assert critic.score.in_features == flat
    assert critic(features).shape == (2,)


def test_frozen_prefixes_leave_the_last_convolution_block_trainable() -> None:
    for network, block in [(lenet5(), "classifier.body.conv2"), (vgg16_32(), "classifier.body.conv5_1")]:
        names = [name for name, _ in network.named_parameters()]
        free = [name for name in names if not name.startswith(network.frozen)]
        assert free[0] == f"{block}.weight"
        assert all(any(name.startswith(prefix) for name in names) for prefix in network.frozen)


@pytest.mark.parametrize(("slope", "affine"), [(0.2, False), (1.0, True)])
def test_critic_is_affine_only_with_the_released_slope(slope: float, affine: bool) -> None:
    torch.manual_seed(0)
    critic = FeatureDiscriminator(FEATURE_GAN_SHAPES["lenet5"], slope=slope).double()
    a, b = torch.randn(2, 8, 6, 14, 14, dtype=torch.float64)
    with torch.no_grad():
        bend = (critic(a) + critic(b) - 2 * critic((a + b) / 2)).abs().max()
    assert (bend < 1e-12) == affine


def generate(position: str, weights: Tensor) -> tuple[FeatureGenerator, Tensor]:
    torch.manual_seed(0)
    generator = FeatureGenerator(FEATURE_GAN_SHAPES["lenet5"], 10, weight_position=position)  # type: ignore[arg-type]
    nn.init.uniform_(generator.last_norm.bias, 0.5, 1.5)
    n = len(weights)
    return generator, generator(torch.rand(n, 100) * 2 - 1, torch.eye(10)[torch.arange(n) % 10], weights)


def test_a_deactivated_channel_is_the_norms_offset_inside_and_zero_after() -> None:
    weights = torch.ones(16, 6)
    weights[:, 2] = 0
    generator, inside = generate("inside_norm", weights)
    assert torch.allclose(inside[:, 2], generator.last_norm.bias[2])
    _, after = generate("after_norm", weights)
    assert (after[:, 2] == 0).all()
    assert (after[:, 3] != 0).any()


def test_inside_the_norm_a_common_scale_cancels_and_a_mixed_batch_is_not_zero() -> None:
    weights = torch.rand(16, 6) + 0.5
    weights[:8, 2] = 0
    _, once = generate("inside_norm", weights)
    generator, scaled = generate("inside_norm", 100 * weights)
    assert torch.allclose(once, scaled, atol=1e-2)
    norm = generator.last_norm
    assert (once[:8, 2] - norm.bias[2]).abs().max() > 1e-3


@pytest.mark.parametrize("keep_bias", [False, True])
@pytest.mark.parametrize("architecture", ["lenet5", "vgg16_32", "resnet50"])
def test_without_filters_equals_zeroing_each_filter(architecture: Architecture, keep_bias: bool) -> None:
    torch.manual_seed(0)
    extractor = split_classifier(architecture, 10).extractor.eval()
    image = torch.randn(2, *CLASSIFIER_TABLES[architecture][0][:1], 32, 32)
    conv = extractor.layers.get_submodule(extractor.last_conv)
    with torch.no_grad():
        silent = extractor.without_filters(image, keep_bias)
        for j in (0, 3):
            weight, bias = conv.weight[j].clone(), None if conv.bias is None else conv.bias[j].clone()
            conv.weight[j] = 0
            if conv.bias is not None and not keep_bias:
                conv.bias[j] = 0
            assert torch.allclose(extractor(image)[:, j], silent[:, j], atol=1e-6)
            conv.weight[j] = weight
            if bias is not None:
                conv.bias[j] = bias


@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_pooling_without_gradient_is_the_librarys_to_the_bit(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    maps[0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        got = HalvingMaxPool()(maps)
    assert torch.equal(got.nan_to_num(9), nn.MaxPool2d(2)(maps).nan_to_num(9))
