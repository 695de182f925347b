"""Cross-entropy objectives of E and C (DFG, eqs. 3, 4, 4a–4c) and class weights for imbalanced data.

Every function takes any number of leading replica axes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, log_softmax

from repro.models.feature_gan import FeatureDiscriminator, channels_last
from repro.models.split_classifier import FeatureExtractor


def sample_cross_entropy(logits: Float[Tensor, "*r n k"], labels: Int[Tensor, "*r n"]) -> Float[Tensor, "*r n"]:
    """−y log softmax(logits) of each sample, in nats."""
    return -log_softmax(logits, dim=-1).gather(-1, labels[..., None]).squeeze(-1)


def classification_loss(
    logits: Float[Tensor, "*r n k"],
    labels: Int[Tensor, "*r n"],
    class_weights: Float[Tensor, "*r k"] | None = None,
) -> Float[Tensor, "*r"]:
    """Mean cross-entropy: L_E (eq. 3) and L_rC (4a) on real, L_gC (4b) on generated, L_cC (4c) on merged features.

    With `class_weights`, the weighted mean Σ w_y·loss / Σ w_y (as `torch.nn.CrossEntropyLoss(weight=…)`).
    """
    losses = sample_cross_entropy(logits, labels)
    if class_weights is None:
        return losses.mean(-1)
    weights = class_weights.gather(-1, labels)
    return (weights * losses).sum(-1) / weights.sum(-1)


def classifier_objective(
    real: Float[Tensor, "*r"],
    generated: Float[Tensor, "*r"],
    merged: Float[Tensor, "*r"],
    coefficients: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3),
) -> Float[Tensor, "*r"]:
    """L_C = α·L_rC + β·L_gC + γ·L_cC (eq. 4), α + β + γ = 1.

    The paper prints β·L_rC, which would leave (4b) unused; the released code weights the generated features.
    For a classifier without batch norm the merged term is the mean of the other two when both batches have one
    size, so the three-way weighting is (α + γ/2)·L_rC + (β + γ/2)·L_gC.

    Raises:
        ValueError: if the coefficients do not sum to one (within 0.5 %, since the paper prints 0.333).
    """
    if abs(sum(coefficients) - 1) > 5e-3:
        raise ValueError(f"coefficients={coefficients} (α, β, γ) must sum to 1, they sum to {sum(coefficients):.4g}")
    alpha, beta, gamma = coefficients
    return alpha * real + beta * generated + gamma * merged


def inverse_frequency_weights(counts: Int[Tensor, "*r k"]) -> Float[Tensor, "*r k"]:
    """Plain re-weighting: w_k ∝ 1 / count_k, scaled to sum to the number of classes; 0 for an absent class."""
    return _to_mean_one((counts.clamp(min=1).double().reciprocal()) * (counts > 0))


def class_balanced_weights(counts: Int[Tensor, "*r k"], beta: float = 0.999) -> Float[Tensor, "*r k"]:
    """Class-balanced loss (Cui et al. 2019, eq. 3): w_k ∝ (1 − β) / (1 − β^count_k), scaled to sum to k.

    β is in [0, 1); β = 0 gives equal weights, β → 1 the inverse frequency. An absent class has weight 0.

    Raises:
        ValueError: if β is outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta} must be in [0, 1); Cui et al. use 0.9, 0.99, 0.999 and 0.9999")
    effective = (1 - beta ** counts.clamp(min=1).double()) / (1 - beta)
    return _to_mean_one(effective.reciprocal() * (counts > 0))


def _to_mean_one(weights: Tensor) -> Tensor:
    return (weights * weights.shape[-1] / weights.sum(-1, keepdim=True)).float()


# Wasserstein GAN with gradient penalty on features (DFG, eqs. 1 and 2).
#
# Every function takes any number of leading replica axes and reduces the sample axis only.
#
# Eq. (1) is printed with both signs flipped, −E[D(G)] + E[D(E(x))], to be *minimised*: critic and generator would then
# both raise D(G) and there would be no game. The standard sign (Gulrajani et al., and the released code) is used.

_NORM_FLOOR = 1e-12  # inside the square root: its derivative at exactly zero gradient would be infinite


def critic_loss(
    real_scores: Float[Tensor, "*r n"],
    generated_scores: Float[Tensor, "*r n"],
    penalty: Float[Tensor, "*r"],
    coefficient: float = 10.0,
) -> Float[Tensor, "*r"]:
    """L_D = E[D(G(z, ŷ))] − E[D(E(x))] + λ·penalty, minimised by the critic (eq. 1 with the standard sign)."""
    return generated_scores.mean(-1) - real_scores.mean(-1) + coefficient * penalty


def generator_loss(generated_scores: Float[Tensor, "*r n"]) -> Float[Tensor, "*r"]:
    """L_G = −E[D(G(z, ŷ))] (eq. 2)."""
    return -generated_scores.mean(-1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "..."],
    generated: Float[Tensor, "..."],
    mixing: Float[Tensor, "*r n"],
) -> Float[Tensor, "*r"]:
    """E[(‖∇D(x̂)‖₂ − 1)²] with x̂ = ε·real + (1 − ε)·generated (last term of eq. 1), differentiable once more.

    Args:
        critic: maps features to one score per sample.
        real: features of data; axes (replicas…, sample, feature axes…).
        generated: features of G, the same shape.
        mixing: ε per sample, uniform on [0, 1].

    Raises:
        ValueError: if the two kinds of features differ in shape.
    """
    if real.shape != generated.shape:
        raise ValueError(
            f"real features {tuple(real.shape)} and generated features {tuple(generated.shape)} must have one shape; "
            "does the generator belong to this extractor?"
        )
    weights = mixing.reshape(mixing.shape + (1,) * (real.ndim - mixing.ndim))
    between = (weights * real + (1 - weights) * generated).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = (slope.flatten(mixing.ndim).square().sum(-1) + _NORM_FLOOR).sqrt()
    return (norms - 1).square().mean(-1)


@torch.no_grad()
def critic_gradients(
    critic: FeatureDiscriminator,
    real: Float[Tensor, "n f p q"],
    generated: Float[Tensor, "n f p q"],
    mixing: Float[Tensor, " n"],
    coefficient: float = 10.0,
) -> tuple[dict[str, Tensor], Float[Tensor, ""], Float[Tensor, ""]]:
    """Gradient of eq. (1) by parameter name, eq. (1) itself and its penalty, without double backward.

    What `critic_loss` with `gradient_penalty` and autograd give. A leaky ReLU multiplies by a mask m that is constant
    almost everywhere, so D's slope at x̂ is the linear g = W₁ᵀ m₁ W₂ᵀ m₂ W₃ᵀ m₃ w, and the penalty's gradient with
    respect to W_l pairs the backward signal at layer l with the forward image of ∂penalty/∂g at layer l − 1. It needs
    the same convolutions as the ordinary gradient; real, generated and mixed features go through them as one batch.
    """
    n, convolutions = len(real), critic.convolutions
    weights = mixing[:, None, None, None]
    layer_inputs = [channels_last(torch.cat([real, generated, weights * real + (1 - weights) * generated]))]
    befores = []
    for conv in convolutions.values():
        befores.append(conv(layer_inputs[-1]))
        layer_inputs.append(leaky_relu(befores[-1], critic.slope))
    scores = critic.score(layer_inputs[-1].flatten(1)).squeeze(-1)

    share = torch.full_like(scores, 1 / n)
    share[:n].neg_()
    share[2 * n :] = 1
    # Per sample ∂/∂(a layer's output), of eq. (1)'s scores and, for the mixed third, of D itself.
    signal = (share[:, None] * critic.score.weight).unflatten(1, layer_inputs[-1].shape[1:])
    signals = []
    for conv, before, inputs in zip(
        reversed(convolutions.values()), reversed(befores), reversed(layer_inputs[:-1]), strict=True
    ):
        signals.append(_masked(signal, before, critic.slope))
        needed = slice(2 * n, None) if inputs is layer_inputs[0] else slice(None)
        signal = _convolution_gradient(conv, inputs[needed], signals[-1][needed], of_inputs=True)
    norms = (signal.flatten(1).square().sum(-1) + _NORM_FLOOR).sqrt()
    penalty = (norms - 1).square().mean()
    tangent = coefficient * (2 * (norms - 1) / norms / n)[:, None, None, None] * signal  # ∂(λ·penalty)/∂g

    gradients = {}
    for (name, conv), signal, inputs, before in zip(
        convolutions.items(), reversed(signals), layer_inputs[:-1], befores, strict=True
    ):
        images, signal = torch.cat([inputs[: 2 * n], tangent]).contiguous(), signal.contiguous()
        gradients[f"{name}.weight"] = _convolution_gradient(conv, images, signal, of_inputs=False)
        if conv.bias is not None:
            gradients[f"{name}.bias"] = signal[: 2 * n].sum((0, 2, 3))
        tangent = conv2d(tangent, conv.weight, None, conv.stride, conv.padding)
        tangent = _masked(tangent, before[2 * n :], critic.slope)
    top = torch.cat([share[: 2 * n, None] * layer_inputs[-1][: 2 * n].flatten(1), tangent.flatten(1)])
    gradients["score.weight"] = top.sum(0, keepdim=True)
    gradients["score.bias"] = share[: 2 * n].sum().reshape(1)
    return gradients, critic_loss(scores[:n], scores[n : 2 * n], penalty, coefficient), penalty


def _masked(signal: Tensor, before: Tensor, slope: float) -> Tensor:
    """The signal times lReLU's derivative."""
    return torch.ops.aten.leaky_relu_backward(signal, before, slope, False)


def _convolution_gradient(conv: nn.Conv2d, inputs: Tensor, outputs: Tensor, *, of_inputs: bool) -> Tensor:
    """∂⟨outputs, conv(inputs)⟩ with respect to the inputs (whose values do not matter), or to the weight."""
    wanted = (of_inputs, not of_inputs, False)
    size = None, conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, wanted
    gradients = torch.ops.aten.convolution_backward(outputs, inputs, conv.weight, *size)
    return gradients[0 if of_inputs else 1]


# Class-wise filter weights of DFG: eqs. (5), (6), (7) and the threshold of Algorithm 1.
#
# E runs twice (with its last convolution as it is and with all its filters at zero), C runs on n_f masked copies:
# channel j of the features is replaced by what it becomes without filter j. This equals zeroing one filter at a time.

ThresholdUnit = Literal["filters", "classes"]


@torch.no_grad()
def sample_filter_weights(
    extractor: FeatureExtractor,
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    *,
    inverted: bool = False,
    keep_bias: bool = False,
) -> Float[Tensor, "n f"]:
    """W_j(E, x, y) = softmax_j[loss without filter j − loss with it] (eq. 5): an important filter has a high weight.

    Args:
        extractor: E, in evaluation mode.
        classifier: C, features to logits, in evaluation mode.
        images: network inputs.
        labels: their classes.
        inverted: take loss with − loss without, as the released code does; important filters then have *low* weights.
        keep_bias: remove a filter's weights only and leave its bias (released code).
    """
    features = extractor(images)
    silent = extractor.without_filters(images, keep_bias)
    base = sample_cross_entropy(classifier(features), labels)

    def loss_without(removed: Tensor) -> Tensor:
        return sample_cross_entropy(classifier(torch.where(removed[:, None, None], silent, features)), labels)

    filters = features.shape[1]
    masks = torch.eye(filters, dtype=torch.bool, device=features.device)
    # At most eight masked copies at a time: 256 copies of ResNet features would not fit any device.
    increase = torch.vmap(loss_without, chunk_size=min(8, filters))(masks).T - base[:, None]
    return torch.softmax(-increase if inverted else increase, dim=-1)


def class_filter_weights(
    sample_weights: Float[Tensor, "n f"], labels: Int[Tensor, "n"], classes: int
) -> Float[Tensor, "k f"]:
    """W_j(E, c) = n_f · mean over the samples of class c (eq. 6, whose sum over i is missing in print).

    Every row has mean 1. A class without samples gets equal weights.
    """
    filters = sample_weights.shape[1]
    counts = torch.bincount(labels, minlength=classes)[:, None]
    sums = torch.zeros(classes, filters, dtype=sample_weights.dtype, device=sample_weights.device)
    sums.index_add_(0, labels, sample_weights)
    return torch.where(counts > 0, filters * sums / counts.clamp(min=1), torch.ones_like(sums))


def blend_filter_weights(
    source: Float[Tensor, "*r k f"], target: Float[Tensor, "*r k f"], rho: float
) -> Float[Tensor, "*r k f"]:
    """ρ·W(E_S) + (1 − ρ)·W(E) (eq. 7).

    Raises:
        ValueError: if ρ is outside [0, 1].
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho={rho} must be in [0, 1]; 1 keeps the source weights, 0 the target weights")
    return rho * source + (1 - rho) * target


def active_filters(
    weights: Float[Tensor, "*r k f"], threshold: float = 0.95, unit: ThresholdUnit = "filters"
) -> Bool[Tensor, "*r k f"]:
    """Which filters stay active: those whose weight exceeds δ times the mean weight (Section 3.2).

    Weights are in the units of eq. (6), mean 1. `unit="classes"` is the literal δ/n_l of Algorithm 1, lines 4 and 24,
    which compares the raw softmax with δ over the number of *classes*: for VGG-16 (64 filters, 10 classes) it
    switches every filter off unless one has 6 times its share.
    """
    filters, classes = weights.shape[-1], weights.shape[-2]
    return weights > (threshold if unit == "filters" else threshold * filters / classes)
