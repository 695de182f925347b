"""ADL, attention-based drop layer: hides or highlights what a stage attends to (Choe and Shim, CVPR 2019)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from repro.models.cam_network import CAMNetwork, add_after, pools_and_end
from repro.training.comparators.settings import ComparatorSettings
from repro.training.ingredients import Ingredient, StepContext


class AttentionDrop(nn.Module):
    """Multiplies features by a drop mask or by an importance map of their own attention (§3.1); no parameters.

    Does nothing in evaluation mode, and nothing while `dropping` is None: only the forward pass of a training step
    sets it. So an attack sees the network without the drop.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.dropping: bool | None = None

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features where attention, their mean over channels, is below γ of its maximum; or times its sigmoid."""
        if not self.training or self.dropping is None:
            return features
        attention = features.mean(1, keepdim=True)
        if self.dropping:
            return features * (attention < self.threshold * attention.amax((1, 2, 3), keepdim=True))
        return features * attention.sigmoid()


@dataclass(frozen=True)
class AttentionDropLayers(Ingredient):
    """Drop layers behind the last two pools and the last stage: pool3, pool4 and conv5 of VGG-16, as the authors place
    them (inferred for other backbones)."""

    drop_rate: float
    threshold: float

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add the layers."""
        add_after(network, pools_and_end(network)[-3:], lambda channels: AttentionDrop(self.threshold))
        return network

    @contextmanager
    def forward_context(self, context: StepContext) -> Iterator[None]:
        """Draw for this step and each layer whether it drops or highlights."""
        layers = [layer for layer in context.network.modules() if isinstance(layer, AttentionDrop)]
        drops = (context.random.shared(len(layers)) < self.drop_rate).tolist()
        try:
            for layer, drop in zip(layers, drops, strict=True):
                layer.dropping = drop
            yield
        finally:
            for layer in layers:
                layer.dropping = None


class ADLSettings(ComparatorSettings):
    """ADL in the CAM loop."""

    drop_rate: float = Field(default=0.75, ge=0, le=1)
    """Probability that a step drops rather than highlights. Stated: 75 %, §4.1; also the benchmark's default."""
    threshold: float = Field(default=0.8, gt=0, lt=1)
    """γ, share of the largest attention from which on features are dropped. Stated: 80 % for VGG, §4.1 (the benchmark's
    default is 0.9)."""

    def ingredients(self) -> list[Ingredient]:
        """The drop layers."""
        return [AttentionDropLayers(self.drop_rate, self.threshold)]
