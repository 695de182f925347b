"""3 × 3 convolutions by minimal filtering, F(4 × 4, 3 × 3): four times fewer multiplications, same function.

Score-CAM runs one network hundreds of times per image, and on a CPU nearly all of that time goes into 3 × 3
convolutions that already run at the machine's peak. What is left is to multiply less (Lavin and Gray, Fast algorithms
for convolutional neural networks, CVPR 2016, §4.1 and eq. 8-12): an output tile of 4 × 4 costs 36 multiplications per
pair of channels, not 144. The transforms cost additions and memory traffic instead, so that it pays with many channels
only. The result differs from the direct convolution by rounding, below 1e-5 of its largest value in float32.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

_FEWEST_CHANNELS = 128
"""Below, the transforms cost more than they save (measured: 64 channels lose 15 %, 128 gain 25 %, 512 gain 45 %)."""

# Interpolation at 0, ±1, ±2 and infinity. Output tile = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A for an input tile x of 6 × 6.
_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
_FILTER = torch.tensor([[6.0, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]).double() / 24
_OUTPUT = torch.tensor([[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_SPREADS = 7
"""Position of the 6 × 6 product that the output transform copies, with factor 1, to all sixteen outputs."""


class WinogradConv2d(nn.Module):
    """A 3 × 3 convolution of stride 1 with its filters transformed beforehand; for channels-last inputs."""

    filters: Tensor
    bias: Tensor | None
    to_tiles: Tensor
    from_tiles: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take over a convolution for which `pays` holds."""
        super().__init__()
        weight = convolution.weight.detach()
        outputs, inputs = weight.shape[:2]
        filters = torch.kron(_FILTER, _FILTER).to(weight) @ weight.reshape(outputs * inputs, 9).T
        self.register_buffer("filters", filters.view(36, outputs, inputs).transpose(1, 2).contiguous())
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach())
        self.register_buffer("to_tiles", torch.kron(_INPUT, _INPUT).to(weight))
        self.register_buffer("from_tiles", torch.kron(_OUTPUT, _OUTPUT).to(weight))
        assert not isinstance(convolution.padding, str)
        self.padding = convolution.padding[0], convolution.padding[1]

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k rows columns"]:
        """The convolution, channels-last in memory."""
        tiles = self._tiles(images)
        count, down, across, channels = tiles.shape[2:]
        transformed = (self.to_tiles @ tiles.reshape(36, -1)).view(36, -1, channels)
        products = torch.bmm(transformed, self.filters)
        if self.bias is not None:
            products[_SPREADS] += self.bias
        outputs = (self.from_tiles @ products.view(36, -1)).view(4, 4, count, down, across, -1)
        whole = outputs.permute(2, 3, 0, 4, 1, 5).reshape(count, 4 * down, 4 * across, -1)
        rows, columns = (side + 2 * pad - 2 for side, pad in zip(images.shape[2:], self.padding, strict=True))
        return whole[:, :rows, :columns].permute(0, 3, 1, 2)

    def _tiles(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "6 6 n down across c"]:
        """Overlapping 6 × 6 tiles at steps of four, as a view of the padded images."""
        (height, width), (above, left) = images.shape[2:], self.padding
        down, across = -(-(height + 2 * above - 2) // 4), -(-(width + 2 * left - 2) // 4)
        below, right = 4 * down + 2 - height - above, 4 * across + 2 - width - left
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, left, right, above, below)).contiguous()
        image, row, column, channel = padded.stride()
        shape = (6, 6, len(images), down, across, images.shape[1])
        return padded.as_strided(shape, (row, column, image, 4 * row, 4 * column, channel))


def pays(convolution: nn.Module) -> bool:
    """Whether a module is a convolution that `WinogradConv2d` computes, and faster: float32 on a CPU, many channels."""
    return (
        type(convolution) is nn.Conv2d
        and (convolution.kernel_size, convolution.stride, convolution.dilation) == ((3, 3), (1, 1), (1, 1))
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and min(convolution.in_channels, convolution.out_channels) >= _FEWEST_CHANNELS
        and convolution.weight.dtype == torch.float32
        and convolution.weight.device.type == "cpu"
    )


def replace_convolutions(network: fx.GraphModule) -> None:
    """Replace every convolution of a traced private copy that pays and whose weights nothing else reads."""
    read_directly = {str(node.target).rpartition(".")[0] for node in network.graph.nodes if node.op == "get_attr"}
    for name, module in list(network.named_modules()):
        if pays(module) and name not in read_directly and not (module._forward_hooks or module._forward_pre_hooks):
            assert isinstance(module, nn.Conv2d)
            network.set_submodule(name, WinogradConv2d(module))
