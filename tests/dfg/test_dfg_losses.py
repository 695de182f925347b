"""Signs and values of eqs. (1)–(7), by hand and against plain autograd."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from repro.losses import (
    active_filters,
    blend_filter_weights,
    channel_attention,
    class_balanced_weights,
    class_filter_weights,
    classification_loss,
    classifier_objective,
    critic_loss,
    delta_regularizer,
    generator_loss,
    gradient_penalty,
    inverse_frequency_weights,
    knockout_loss_increase,
    sample_filter_weights,
)
from repro.losses.dfg import critic_gradients
from repro.models import FEATURE_GAN_SHAPES, FeatureDiscriminator, SplitClassifier, lenet5, resnet50_split, vgg16_32
from repro.models.split_classifier import Architecture
from repro.training.replicas import ReplicaNetwork


def test_critic_and_generator_pull_in_opposite_directions() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.5], requires_grad=True)
    loss = critic_loss(real, fake, torch.tensor(0.25), coefficient=10.0)
    assert loss.item() == pytest.approx(1 - 2 + 2.5)
    (critic_slope,) = torch.autograd.grad(loss, fake)
    (generator_slope,) = torch.autograd.grad(generator_loss(fake), fake)
    assert (critic_slope > 0).all(), "the critic lowers the scores of generated features"
    assert (generator_slope < 0).all(), "the generator raises them"


def test_gradient_penalty_of_a_linear_critic_is_known() -> None:
    direction = torch.tensor([[3.0, 4.0]])
    penalty = gradient_penalty(lambda x: (x * direction).sum(-1), torch.randn(5, 2), torch.randn(5, 2), torch.rand(5))
    assert penalty.item() == pytest.approx((5 - 1) ** 2, rel=1e-5)


def test_gradient_penalty_mixes_real_and_generated_as_stated() -> None:
    real, generated = torch.full((2, 1), 2.0), torch.full((2, 1), 6.0)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x)
        return x.square().sum(-1)

    gradient_penalty(critic, real, generated, torch.tensor([0.75, 0.0]))
    assert seen[0].flatten().tolist() == [3.0, 6.0]
    with pytest.raises(ValueError, match="one shape"):
        gradient_penalty(critic, real, generated[:1], torch.rand(2))


@pytest.mark.parametrize(("slope", "bias"), [(0.2, True), (1.0, False)])
@pytest.mark.parametrize("architecture", ["lenet5", "vgg16_32"])
def test_the_written_out_critic_gradient_is_autograds(architecture: Architecture, slope: float, bias: bool) -> None:
    torch.manual_seed(0)
    shape = FEATURE_GAN_SHAPES[architecture]
    size = (shape.feature_channels, shape.feature_side, shape.feature_side)
    critics = [FeatureDiscriminator(shape, slope, bias).double() for _ in range(2)]
    real, generated = torch.randn(2, 2, 4, *size, dtype=torch.float64)
    mixing = torch.rand(2, 4, dtype=torch.float64)
    stacked = ReplicaNetwork(critics).apply(critic_gradients, real, generated, mixing)
    for r, critic in enumerate(critics):
        penalty = gradient_penalty(critic, real[r], generated[r], mixing[r])
        loss = critic_loss(critic(real[r]), critic(generated[r]), penalty)
        expected = torch.autograd.grad(loss, list(critic.parameters()))
        for gradients, got_loss, got_penalty in (
            critic_gradients(critic, real[r], generated[r], mixing[r]),
            tree_map(lambda values, r=r: values[r], stacked),
        ):
            assert torch.allclose(got_loss, loss, atol=1e-10) and torch.allclose(got_penalty, penalty, atol=1e-10)
            for (name, _), gradient in zip(critic.named_parameters(), expected, strict=True):
                assert torch.allclose(gradients.pop(name), gradient, atol=1e-10), name
            assert not gradients


def test_classifier_objective_weights_the_generated_loss_with_beta() -> None:
    real, generated, merged = (torch.tensor(v, requires_grad=True) for v in (1.0, 2.0, 4.0))
    loss = classifier_objective(real, generated, merged, (0.5, 0.3, 0.2))
    assert loss.item() == pytest.approx(0.5 + 0.6 + 0.8)
    assert torch.autograd.grad(loss, generated)[0].item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="sum to 1"):
        classifier_objective(real, generated, merged, (1.0, 1.0, 1.0))


def test_merged_loss_of_equal_batches_is_the_mean_of_the_two() -> None:
    logits, labels = torch.randn(2, 8, 5), torch.randint(5, (2, 8))
    merged = classification_loss(torch.cat(list(logits)), torch.cat(list(labels)))
    assert torch.allclose(merged, classification_loss(logits, labels).mean())


@pytest.mark.parametrize("weighted", [False, True])
def test_classification_loss_equals_torchs(weighted: bool) -> None:
    logits, labels = torch.randn(3, 8, 5), torch.randint(5, (3, 8))
    weights = torch.rand(3, 5) + 0.1 if weighted else None
    got = classification_loss(logits, labels, weights)
    for r in range(3):
        expected = nn.functional.cross_entropy(logits[r], labels[r], weights[r] if weights is not None else None)
        assert torch.allclose(got[r], expected)


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=10), st.sampled_from([0.0, 0.9, 0.999]))
def test_class_weights_sum_to_the_number_of_classes_and_favour_rare_ones(counts: list[int], beta: float) -> None:
    n = torch.tensor(counts)
    for weights in (inverse_frequency_weights(n), class_balanced_weights(n, beta)):
        assert weights.sum().item() == pytest.approx(len(counts), rel=1e-4)
        assert (weights[n.argmin()] >= weights - 1e-6).all()
    if beta == 0:
        assert torch.allclose(class_balanced_weights(n, 0.0), torch.ones(len(counts)))


def test_absent_classes_get_no_weight() -> None:
    assert inverse_frequency_weights(torch.tensor([0, 4, 4])).tolist() == [0.0, 1.5, 1.5]


def test_delta_regularizer_by_hand_and_its_pull_towards_the_source() -> None:
    target = torch.zeros(2, 2, 1, 2, requires_grad=True)  # two samples, two channels, 1 × 2 pixels
    source = torch.tensor([1.0, 3.0])[None, :, None, None].expand(2, 2, 1, 2)
    weights = torch.tensor([0.25, 0.75])
    omega = delta_regularizer([target], [source], [weights])
    # ½ · c=2 · Σ_batch(2) · (0.25·1 + 0.75·9)
    assert omega.item() == pytest.approx(0.5 * 2 * 2 * (0.25 + 6.75))
    assert (torch.autograd.grad(omega, target)[0] < 0).all(), "descent raises the maps towards the source's"
    with pytest.raises(ValueError, match="one per layer"):
        delta_regularizer([target], [source], [])


def test_channel_attention_is_a_bounded_softmax_that_rises_with_the_loss_increase() -> None:
    weights = channel_attention(torch.tensor([0.0, 1.0, 5.0]))
    assert weights.sum().item() == pytest.approx(1)
    assert weights.argsort().tolist() == [0, 1, 2]
    assert torch.allclose(channel_attention(torch.zeros(4)), torch.full((4,), 0.25))


def network_that_reads_channel(channel: int) -> SplitClassifier:
    """LeNet-5 sizes whose class-0 logit is the mean of one feature channel."""
    torch.manual_seed(0)
    network = lenet5(2).eval()

    class ReadChannel(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            score = 5 * features[:, channel].mean((-2, -1))
            return torch.stack([score, -score], dim=-1)

    network.classifier.body = nn.Sequential(ReadChannel())
    network.classifier.head = nn.Identity()  # type: ignore[assignment]
    return network


def test_removing_an_important_filter_raises_its_weight() -> None:
    network = network_that_reads_channel(2)
    images, labels = torch.randn(6, 1, 32, 32), torch.zeros(6, dtype=torch.long)
    weights = sample_filter_weights(network.extractor, network.classifier, images, labels)
    assert torch.allclose(weights.sum(-1), torch.ones(6))
    assert (weights.argmax(-1) == 2).all()
    inverted = sample_filter_weights(network.extractor, network.classifier, images, labels, inverted=True)
    assert (inverted.argmin(-1) == 2).all(), "the released sign calls the same filter the least important"
    conv = network.extractor.layers.get_submodule("conv1")
    assert knockout_loss_increase(network, conv, images, labels).argmax() == 2


@pytest.mark.parametrize("keep_bias", [False, True])
def test_filter_weights_equal_zeroing_one_filter_at_a_time(keep_bias: bool) -> None:
    torch.manual_seed(0)
    network = lenet5().double().eval()
    images, labels = torch.randn(5, 1, 32, 32, dtype=torch.float64), torch.randint(10, (5,))
    got = sample_filter_weights(network.extractor, network.classifier, images, labels, keep_bias=keep_bias)
    conv = network.extractor.layers.get_submodule("conv1")
    increases = []
    with torch.no_grad():
        base = nn.functional.cross_entropy(network(images), labels, reduction="none")
        for j in range(6):
            saved = conv.weight[j].clone(), conv.bias[j].clone()
            conv.weight[j] = 0
            if not keep_bias:
                conv.bias[j] = 0
            increases.append(nn.functional.cross_entropy(network(images), labels, reduction="none") - base)
            conv.weight[j], conv.bias[j] = saved
    assert torch.allclose(got, torch.softmax(torch.stack(increases, dim=-1), dim=-1), atol=1e-12)


def test_class_weights_average_each_class_to_mean_one() -> None:
    samples = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]])
    weights = class_filter_weights(samples, torch.tensor([0, 0, 2]), classes=3)
    assert torch.allclose(weights, torch.tensor([[0.8, 1.2], [1.0, 1.0], [1.8, 0.2]]))


def test_blend_and_thresholds() -> None:
    source, target = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    blend = blend_filter_weights(source, target, rho=0.75)
    assert torch.allclose(blend, torch.tensor([[1.75, 0.25]]))
    assert active_filters(blend, 0.95).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="rho"):
        blend_filter_weights(source, target, rho=1.2)


def test_the_printed_threshold_over_classes_switches_every_vgg_filter_off() -> None:
    weights = 1 + 0.5 * torch.rand(10, 64)
    assert active_filters(weights, 0.95, "filters").all()
    assert not active_filters(weights, 0.95, "classes").any()


@pytest.mark.parametrize("build", [lenet5, vgg16_32, lambda: resnet50_split(10)])
def test_knock_out_re_runs_only_what_follows_and_equals_whole_passes(build: Callable[[], SplitClassifier]) -> None:
    torch.manual_seed(0)
    network = build().eval()
    images = torch.rand(2, 1 if build is lenet5 else 3, 32, 32)
    labels = torch.tensor([1, 7])
    conv = network.regularised_convolutions()[-1]
    got = knockout_loss_increase(network, conv, images, labels)
    keep = torch.ones(conv.out_channels)
    conv.register_forward_hook(lambda _m, _i, output: output * keep[:, None, None])
    with torch.no_grad():
        base = nn.functional.cross_entropy(network(images), labels)
        for j in (0, conv.out_channels - 1):
            keep[j] = 0
            assert got[j] == nn.functional.cross_entropy(network(images), labels) - base
            keep[j] = 1
    with pytest.raises(ValueError, match="of the network"):
        knockout_loss_increase(network, nn.Conv2d(3, 3, 3), images, labels)
