"""Feature generator G and feature critic D of DFG (Tables A.4, A.6 and A.8).

The tables print sizes and strides but no padding; the paddings below are the only ones (output padding 0, dilation 1)
that give the printed sizes. Impossible or surprising entries:

* "FC – 512" under the critics (A.4, A.6) and "FC – 6272, FC – 512" (A.8) cannot all be layer widths: a critic ends
  in one number, which is not listed. 512 = 2·2·128 and 6272 = 7·7·128 are the flattened inputs of that last layer: one
  `Linear(flat, 1)` is built.
* Table A.6's last layer has stride 1 and kernel 4 with padding 2 (17 → 16); Table A.8's last has padding 2 =
  kernel, so the outer ring of the 30 × 30 map never reaches the output (28 × 28 of it are used), and the layer
  before crops half a ring.
* The slope of "lReLU" is not printed: DCGAN's 0.2. The released code passes `True` as the slope, i.e. 1.0: its
  critic is affine.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from repro.models.split_classifier import Architecture

WeightPosition = Literal["inside_norm", "after_norm"]
GeneratorOrder = Literal["activation_then_norm", "norm_then_activation"]


def channels_last(maps: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The same maps with the channel axis last in memory, spelled so that vmap takes it.

    On a CPU the convolutions of small maps with many channels are up to a third quicker by that.
    """
    return maps.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass(frozen=True)
class Deconvolution:
    """One transposed convolution: output channels, kernel, stride, padding."""

    channels: int
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True)
class FeatureGANShape:
    """Sizes of one pair of generator and critic."""

    noise: int
    """Length of z; the class is appended one-hot (110 = 100 + 10; 4900 + number of classes)."""
    base_channels: int
    """Channels of the 4 × 4 map that the generator's linear layer makes."""
    deconvolutions: tuple[Deconvolution, ...]
    feature_side: int
    """Side of the feature maps of E and G."""
    initialisation: Literal["xavier", "he"]
    """Appendix A: Xavier for LeNet-5, He for VGG-16 and ResNet-50; biases zero."""

    @property
    def feature_channels(self) -> int:
        """n_f: channels of E(x) and G(z, ŷ)."""
        return self.deconvolutions[-1].channels


FEATURE_GAN_SHAPES: dict[Architecture, FeatureGANShape] = {
    "lenet5": FeatureGANShape(
        noise=100,
        base_channels=128,
        deconvolutions=(Deconvolution(48, 3, 2, 0), Deconvolution(12, 3, 1, 0), Deconvolution(6, 4, 1, 0)),
        feature_side=14,
        initialisation="xavier",
    ),
    "vgg16_32": FeatureGANShape(
        noise=100,
        base_channels=128,
        deconvolutions=(
            Deconvolution(128, 4, 2, 1),
            Deconvolution(128, 4, 2, 1),
            Deconvolution(64, 4, 1, 1),
            Deconvolution(64, 4, 1, 2),
        ),
        feature_side=16,
        initialisation="he",
    ),
    "resnet50": FeatureGANShape(
        noise=4900,
        base_channels=512,
        deconvolutions=(
            Deconvolution(512, 4, 2, 1),
            Deconvolution(256, 4, 2, 1),
            Deconvolution(256, 2, 2, 1),
            Deconvolution(256, 2, 2, 2),
        ),
        feature_side=56,
        initialisation="he",
    ),
}


class FeatureGenerator(nn.Module):
    """G(z, ŷ) with class-wise filter weights on its last layer (eqs. 8 and 9).

    Args:
        shape: layer sizes, see `FEATURE_GAN_SHAPES`.
        classes: number of classes of the one-hot label.
        slope: negative slope of lReLU.
        weight_position: `inside_norm` is eq. (9), norm[W*·tanh(·)]: batch norm maps a deactivated channel (W* = 0
            for every sample) to its offset, and for a mixed batch a zero entry to (0 − mean)/std·γ + β.
            `after_norm` is the released code, W*·norm[tanh(·)]: a deactivated channel is exactly zero.
        order: of activation and batch norm in the inner layers; the tables print activation first.
        bias: whether the transposed convolutions have one (eq. 8 has; the released code has none).
    """

    def __init__(
        self,
        shape: FeatureGANShape,
        classes: int,
        slope: float = 0.2,
        weight_position: WeightPosition = "inside_norm",
        order: GeneratorOrder = "activation_then_norm",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.weight_position = weight_position
        self.project = nn.Linear(shape.noise + classes, 16 * shape.base_channels, bias=bias)
        self.project_norm = nn.BatchNorm1d(16 * shape.base_channels)
        inner: list[nn.Module] = []
        channels = shape.base_channels
        for layer in shape.deconvolutions[:-1]:
            norm, activation = nn.BatchNorm2d(layer.channels), nn.LeakyReLU(slope)
            inner.append(_deconvolution(channels, layer, bias))
            inner += [activation, norm] if order == "activation_then_norm" else [norm, activation]
            channels = layer.channels
        self.inner = nn.Sequential(*inner)
        self.last = _deconvolution(channels, shape.deconvolutions[-1], bias)
        self.last_norm = nn.BatchNorm2d(shape.feature_channels)
        _initialise(self, shape.initialisation)

    def forward(
        self,
        noise: Float[Tensor, "n z"],
        labels: Float[Tensor, "n k"],
        filter_weights: Float[Tensor, "n f"],
    ) -> Float[Tensor, "n f p q"]:
        """Generate features.

        Args:
            noise: z, uniform on [−1, 1].
            labels: ŷ, one-hot.
            filter_weights: W*[ŷ], the row of the class-wise filter weights of each sample.
        """
        hidden = self.project_norm(self.project(torch.cat([noise, labels], dim=-1)))
        hidden = self.inner(channels_last(hidden.unflatten(-1, (-1, 4, 4))))
        features = torch.tanh(self.last(hidden))
        weights = filter_weights[:, :, None, None]
        if self.weight_position == "inside_norm":
            return self.last_norm(weights * features)
        return weights * self.last_norm(features)


class FeatureDiscriminator(nn.Module):
    """D: the WGAN critic on feature maps; three 5 × 5 convolutions of stride 2 and one linear layer, no label input.

    `slope=1.0` is the released code's (an affine critic, see the module's notes).
    """

    def __init__(self, shape: FeatureGANShape, slope: float = 0.2, bias: bool = True) -> None:
        super().__init__()
        self.slope = slope
        widths = (shape.feature_channels, 32, 64, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 5, stride=2, padding=2, bias=bias), nn.LeakyReLU(slope)]
        self.layers = nn.Sequential(*layers)
        side = shape.feature_side
        for _ in range(3):
            side = (side + 1) // 2
        self.score = nn.Linear(side * side * widths[-1], 1)
        _initialise(self, shape.initialisation)

    @property
    def convolutions(self) -> dict[str, nn.Conv2d]:
        """The three convolutions by parameter prefix; each is followed by lReLU."""
        named = self.layers.named_children()
        return {f"layers.{name}": module for name, module in named if isinstance(module, nn.Conv2d)}

    def forward(self, features: Float[Tensor, "n f p q"]) -> Float[Tensor, "n"]:
        """One score per sample; higher means more like a real feature."""
        return self.score(self.layers(features).flatten(1)).squeeze(-1)


def _deconvolution(channels: int, layer: Deconvolution, bias: bool) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, layer.channels, layer.kernel, layer.stride, layer.padding, bias=bias)


def _initialise(network: nn.Module, kind: Literal["xavier", "he"]) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if kind == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Conditional generator and critic on penultimate features: the DIFA+cMWGAN baseline, a declared reconstruction.
#
# No architecture, feature layer or recipe of the paper's DIFA+cMWGAN is published, nor any cMWGAN code. Kept of its
# sources: features of a fully connected layer, the label concatenated in generator *and* critic (DIFA), a
# class-conditional mixture as the generator's noise and the WGAN-GP objective (cMWGAN). Layer widths are ours.


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
