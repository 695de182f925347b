"""Small networks with random weights: every property tested here holds for any weights."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

CLASSES = 5


def randomise_batch_norm(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after training, so that folding has something to fold."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


class SmallCNN(nn.Module):
    """Two batch-normalised blocks, a last convolution with an in-place ReLU behind it, and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.block = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.rectify = nn.ReLU(inplace=True)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.rectify(self.last(self.block(self.stem(images)))))


@pytest.fixture
def cnn() -> SmallCNN:
    """A fully connected head: the gradient varies over a channel."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 8 * 8, 20), nn.ReLU(), nn.Linear(20, CLASSES))
    return randomise_batch_norm(SmallCNN(head)).eval()


@pytest.fixture
def gap_cnn() -> SmallCNN:
    """A global-average-pool head: the gradient is constant over each channel."""
    torch.manual_seed(1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    return randomise_batch_norm(SmallCNN(head)).eval()


@pytest.fixture
def vit() -> VisionTransformer:
    """torchvision's ViT, 4×4 patches and a class token, with a head that is not zero."""
    torch.manual_seed(2)
    network = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight)
    nn.init.normal_(network.conv_proj.weight, std=0.3)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
