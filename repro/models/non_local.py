"""A block in which every place of a map looks at every other (Wang et al., Non-local neural networks, CVPR 2018)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class NonLocalBlock(nn.Module):
    """x + BN(W_z softmax(θ(x)ᵀ φ(x)) g(x)), the embedded Gaussian form (eq. 2-6).

    The batch norm's weight starts at zero (§4.1 of the source), so that the block starts as the identity. Queries and
    keys have an eighth of the channels, as in the code of NL-CCAM.
    """

    def __init__(self, channels: int) -> None:
        """A block for maps of `channels` channels."""
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Features plus what their places take from each other."""
        query, key, value = (layer(features).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=2)
        gathered = (attention @ value.transpose(1, 2)).transpose(1, 2)
        return features + self.norm(self.output(gathered.unflatten(2, features.shape[2:])))
