"""Wasserstein GAN with gradient penalty on features (DFG, eqs. 1 and 2).

Every function takes any number of leading replica axes and reduces the sample axis only.

Eq. (1) is printed with both signs flipped, −E[D(G)] + E[D(E(x))], to be *minimised*: critic and generator would then
both raise D(G) and there would be no game. The standard sign (Gulrajani et al., and the released code) is used.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

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
