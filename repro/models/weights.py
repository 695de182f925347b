"""Where a network's weights come from: a state dict, a file under the data root, torchvision."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_weight

from repro.project import UserError, data_root

Weights = Mapping[str, Tensor] | str | Path | None
"""A state dict; a file (or its name under `<REPRO_DATA>/weights`); `"torchvision"`; None = random from the seed."""


class WeightsUnavailable(UserError):
    """The weights asked for are not here or do not fit; the message says what to do."""


def read_weights(weights: Mapping[str, Tensor] | str | Path, torchvision_name: str | None) -> dict[str, Tensor]:
    """The state dict that `weights` stands for, on the CPU.

    Args:
        weights: see `Weights`.
        torchvision_name: e.g. `ResNet18_Weights.IMAGENET1K_V1`, what `"torchvision"` stands for; None where
            torchvision has none.

    Raises:
        WeightsUnavailable: no such file, an unreadable one, no network connection, or no torchvision weights.
    """
    if isinstance(weights, Mapping):
        return dict(weights)
    if weights == "torchvision":
        return _download(torchvision_name)
    path = find_weights(weights)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise WeightsUnavailable(f"weights: {path} cannot be read ({error}); fetch the file again") from error
    return without_wrapper(content.get("state_dict", content))


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names without the `module.` that `nn.DataParallel` puts before each."""
    return {name.removeprefix("module."): value for name, value in state.items()}


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


def load_into(network: nn.Module, state: Mapping[str, Tensor], head: str, replace_head: bool) -> None:
    """Load `state` into `network`; with `replace_head` everything but the module `head` (kept as it is).

    Raises:
        WeightsUnavailable: names or shapes do not fit, most often another number of classes.
    """
    kept = {name: value for name, value in state.items() if not (replace_head and name.startswith(f"{head}."))}
    own = network.state_dict()
    # Weights older than PyTorch 0.4.1 lack these counters, which evaluation does not use.
    kept = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | kept
    expected = {name for name in own if not (replace_head and name.startswith(f"{head}."))}
    missing, unexpected = sorted(expected - kept.keys()), sorted(kept.keys() - expected)
    misfits = [
        f"{name} is {tuple(value.shape)} instead of {tuple(own[name].shape)}"
        for name, value in kept.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unexpected or misfits:
        raise WeightsUnavailable(
            f"weights do not fit the network: {len(missing)} names missing {missing[:3]}, {len(unexpected)} unknown "
            f"{unexpected[:3]}, {len(misfits)} of another shape {misfits[:3]}. Give the architecture the weights were "
            f"made for; to fine-tune on other classes pass replace_head=True (fresh {head!r})"
        )
    network.load_state_dict({**own, **kept})


def _download(torchvision_name: str | None) -> dict[str, Tensor]:
    if torchvision_name is None:
        raise WeightsUnavailable("weights: torchvision has none for this architecture; give a file or train it")
    try:
        return dict(get_weight(torchvision_name).get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise WeightsUnavailable(
            f"weights: torchvision could not download {torchvision_name} ({error}). Connect this machine once, or copy "
            f"the file to {Path(torch.hub.get_dir()) / 'checkpoints'} from one that is connected"
        ) from error
