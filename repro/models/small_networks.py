"""Small classifiers that train in seconds on a CPU: the stand-ins of the smoke preset."""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import VisionTransformer


class SmallCNN(nn.Module):
    """Four convolutions with batch norm and a global-average-pool head (about 62,000 parameters at 10 classes).

    The head is linear on the pooled features, so Grad-CAM, XGrad-CAM and CAM coincide up to scale, as on ResNet-18.
    The last feature map is 1/8 of the input (8×8 at 64×64) with a receptive field of 23 pixels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 16, stride=2),
            _convolution(16, 32, stride=2),
            _convolution(32, 64, stride=1),
            _convolution(64, 64, stride=2),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, inputs: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits of normalised images."""
        return self.head(self.features(inputs).mean(dim=(2, 3)))


def _convolution(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def small_vit(num_classes: int, input_size: int) -> VisionTransformer:
    """A three-block vision transformer of width 64 with a class token, in torchvision's layout.

    Patches are 8 pixels from an input size of 64 on and 4 below, which makes an 8×8 grid of tokens at 32 and 64
    and 7×7 at 28.

    Raises:
        ValueError: `input_size` is not a multiple of the patch size.
    """
    patch = 8 if input_size >= 64 else 4
    if input_size % patch:
        raise ValueError(f"input_size: {input_size} is not a multiple of the patch size {patch}; resize the images")
    network = VisionTransformer(
        image_size=input_size,
        patch_size=patch,
        num_layers=3,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=num_classes,
    )
    initialise_vit_head(network)
    return network


def initialise_vit_head(network: VisionTransformer) -> None:
    """Draw the head at random: torchvision leaves it at zero, where every gradient and every map is zero too."""
    head = network.heads.head
    nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features))
