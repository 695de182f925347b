"""Conditional generator and critic on penultimate features: the DIFA+cMWGAN baseline, a declared reconstruction.

No architecture, feature layer or recipe of the paper's DIFA+cMWGAN is published, nor any cMWGAN code. Kept of its
sources: features of a fully connected layer, the label concatenated in generator *and* critic (DIFA), a
class-conditional mixture as the generator's noise and the WGAN-GP objective (cMWGAN). Layer widths are ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MixtureNoiseGenerator(nn.Module):
    """G(z, ŷ): noise from one learned Gaussian-like component per class, then three fully connected layers.

    Features are non-negative, as the penultimate features of every classifier here are (ReLU).
    """

    def __init__(self, features: int, classes: int, noise: int = 100, width: int = 256) -> None:
        super().__init__()
        self.mean = nn.Linear(classes, noise, bias=False)
        self.log_scale = nn.Linear(classes, noise, bias=False)
        nn.init.normal_(self.mean.weight)
        nn.init.zeros_(self.log_scale.weight)
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, features),
            nn.ReLU(),
        )

    def forward(self, noise: Float[Tensor, "n z"], labels: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Generate penultimate features of the one-hot `labels`."""
        mixed = self.mean(labels) + self.log_scale(labels).exp() * noise
        return self.layers(torch.cat([mixed, labels], dim=-1))


class ConditionalCritic(nn.Module):
    """D(feature, label): two hidden layers without batch norm, one score per sample."""

    def __init__(self, features: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features + classes, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, features: Float[Tensor, "n d"], labels: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """Score features given their one-hot labels."""
        return self.layers(torch.cat([features, labels], dim=-1)).squeeze(-1)
