"""Reading one layer of somebody else's network: its activation as a grid, its gradient, without leaving a trace."""

from __future__ import annotations

import difflib
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Reshape = Callable[[Tensor], Tensor]
Layout = Literal["channels_first", "channels_last"]
Call = Literal["first", "last"]

# The model in evaluation mode for as long as a block lasts.

_modes_lock = threading.RLock()
_modes: weakref.WeakKeyDictionary[nn.Module, list[Any]] = weakref.WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, each back in its own mode after it, error or not.

    The flags are set directly: `model.train()` would force one mode on all submodules (a frozen batch norm
    inside a training network would be woken up). Threads may hold the same model: the last one restores the modes.
    """
    with _modes_lock:
        users, training = _modes.get(model, [0, [module for module in model.modules() if module.training]])
        _modes[model] = [users + 1, training]
        for module in training:
            module.training = False
    try:
        yield
    finally:
        with _modes_lock:
            _modes[model][0] -= 1
            if not _modes[model][0]:
                for module in _modes.pop(model)[1]:
                    module.training = True


# From an activation to a grid.

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_PREFIX_NAMES = {"cls_token", "class_token", "dist_token", "reg_token", "register_tokens"}


@dataclass(frozen=True)
class GridLayout:
    """Where an activation keeps its channels and its grid."""

    channels_last: bool
    grid: tuple[int, ...]
    """Cells along height and width (or length, or depth, height and width)."""
    prefix: int = 0
    """Tokens before those of the grid (class token, registers); left out of every map."""

    def apply(self, activation: Float[Tensor, "n ..."]) -> Float[Tensor, "n c *grid"]:
        """The activation with channels first, its tokens (if it has any) laid out as the grid."""
        if self.channels_last:
            activation = activation.movedim(-1, 1)
        if activation.ndim - 2 != len(self.grid):
            activation = activation[:, :, self.prefix :].unflatten(2, self.grid)
        return activation


def find_layout(
    shape: Sequence[int],
    size: tuple[int, ...],
    model: nn.Module,
    layer: nn.Module,
    *,
    layout: Layout | None = None,
    grid: tuple[int, ...] | None = None,
) -> GridLayout:
    """The one layout that an activation of `shape` can have for inputs of `size`, cells as nearly square as pixels.

    Args:
        shape: of the activation, the batch included.
        size: height and width of the inputs (length; depth, height and width).
        model, layer: whose normalisations and token parameters tell layouts apart that shapes alone do not.
        layout, grid: what the user says; each rules out what it does not fit.

    Raises:
        ValueError: no layout fits, or more than one; the message names the argument that settles it.
    """
    if len(shape) == len(size) + 2:
        found = _map_layouts(shape, size, model, layer, layout, grid)
    elif len(shape) == 3:
        found = _token_layouts(shape, size, model, layout, grid)
    else:
        kind = "one vector per image" if len(shape) == 2 else f"shape {tuple(shape)}"
        raise ValueError(f"layer gives {kind}, no grid for inputs of size {size}; choose an earlier layer or reshape=")
    if len(found) == 1:
        return found[0]
    options = "; ".join(
        f"layout={'channels_last' if f.channels_last else 'channels_first'!r}, grid={f.grid}" for f in found
    )
    raise ValueError(
        f"layer activation of shape {tuple(shape)} for inputs of size {size} can be read in {len(found)} ways"
        f"{f' ({options})' if found else ''}; say which with layout='channels_first' or 'channels_last' and "
        "grid=(rows, columns), or give reshape="
    )


def _map_layouts(
    shape: Sequence[int],
    size: tuple[int, ...],
    model: nn.Module,
    layer: nn.Module,
    layout: Layout | None,
    grid: tuple[int, ...] | None,
) -> list[GridLayout]:
    """Layouts of an activation with one axis per axis of the inputs, and one for the channels."""
    first, last = GridLayout(False, tuple(shape[2:])), GridLayout(True, tuple(shape[1:-1]))
    if layout is None and isinstance(layer, _CHANNELS_FIRST):
        layout = "channels_first"
    asked = [f for f in (first, last) if layout in (None, "channels_last" if f.channels_last else "channels_first")]
    if grid is not None:
        return [found for found in asked if found.grid == grid]
    if len(asked) == 1:
        return asked
    found = [found for found in asked if _follows(found.grid, size)]
    if len(found) != 1 and shape[-1] not in _normalised_sizes(model):
        # Nothing in this network works on channels in the last place.
        return [first]
    return found


def _follows(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether a grid has the inputs' aspect, up to the rounding of strides (time may have strides of its own)."""
    (rows, columns), (height, width) = (*grid, *grid)[-2:], (*size, *size)[-2:]
    if height == width or len(grid) == 1:
        return rows == columns
    low, high = max((rows - 1) / height, (columns - 1) / width), min((rows + 1.5) / height, (columns + 1.5) / width)
    return low <= high


def _normalised_sizes(model: nn.Module) -> set[int]:
    """Sizes of last axes that the network normalises (layer and RMS norms)."""
    shapes = [getattr(module, "normalized_shape", None) for module in model.modules()]
    return {int(shape[-1]) for shape in shapes if isinstance(shape, tuple | list) and shape}


def _token_layouts(
    shape: Sequence[int],
    size: tuple[int, ...],
    model: nn.Module,
    layout: Layout | None,
    grid: tuple[int, ...] | None,
) -> list[GridLayout]:
    """Layouts of `(n, tokens, c)` or `(n, c, tokens)` with square patches, with and without leading tokens."""
    prefixes = sorted({0, _prefix_tokens(model)})
    found: list[GridLayout] = []
    for last in (True, False):
        if layout not in (None, "channels_last" if last else "channels_first"):
            continue
        tokens = shape[1] if last else shape[2]
        if grid is None:
            found += [GridLayout(last, g, p) for p in prefixes for g in _patch_grids(tokens - p, size)]
        elif tokens >= math.prod(grid):
            found.append(GridLayout(last, grid, tokens - math.prod(grid)))
    if grid is None:
        found = [f for f in found if _tiles(f.grid, size)] or found
    sizes = _normalised_sizes(model)
    if len(found) > 1 and (shape[2] in sizes) != (shape[1] in sizes):
        found = [f for f in found if f.channels_last == (shape[2] in sizes)]
    if grid is not None and len(found) > 1:
        found = [f for f in found if f.prefix in prefixes] or found
    return found


def _prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens that the network's parameters name; one where none is named."""
    named = [p for name, p in model.named_parameters() if name.rpartition(".")[2] in _PREFIX_NAMES]
    return sum(p.shape[-2] if p.ndim > 1 else 1 for p in named) or 1


def _patch_grids(tokens: int, size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Grids of `tokens` cells that tile the inputs with square patches or nearly do."""
    if len(size) != 2 or tokens < 1:
        return []
    grids: list[tuple[int, ...]] = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    fitting = [grid for grid in grids if grid[0] <= size[0] and grid[1] <= size[1]]
    return [grid for grid in fitting if _tiles(grid, size) or (tokens > 1 and _follows(grid, size))]


def _tiles(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether square patches of whole pixels make the grid."""
    (rows, columns), (height, width) = grid, size
    return height % rows == width % columns == 0 and height // rows == width // columns


# Inputs of a forward pass, and what it returns.


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of the model: image tensors, then whatever else its forward takes."""

    tensors: tuple[Tensor, ...]
    extra: tuple[Any, ...] = ()

    @classmethod
    def of(cls, inputs: Any, additional_forward_args: Any = None) -> ModelInputs:
        """From Captum's `inputs` (a tensor or a tuple of tensors) and `additional_forward_args`.

        Raises:
            ValueError: no floating-point tensors `(n, c, …)` with equal n >= 1.
        """
        tensors = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                hint = "torch.from_numpy(…)" if type(tensor).__module__ == "numpy" else "a tensor (n, c, height, width)"
                raise ValueError(f"inputs: {type(tensor).__name__}; expected normalised images as a tensor, use {hint}")
            if not (tensor.is_floating_point() or tensor.is_complex()):
                raise ValueError(f"inputs: dtype {tensor.dtype}; expected normalised images (floating point)")
        if not tensors or not tensors[0].ndim or not len(tensors[0]):
            raise ValueError("inputs: no image; expected a tensor (n, c, height, width) with n >= 1")
        if any(len(tensor) != len(tensors[0]) for tensor in tensors):
            raise ValueError(f"inputs: tensors of {[len(t) for t in tensors]} images; expected as many in each")
        extra = additional_forward_args
        return cls(tensors, () if extra is None else extra if isinstance(extra, tuple) else (extra,))

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width of the first tensor (length; depth, height and width)."""
        return tuple(self.tensors[0].shape[2:])

    def part(self, chosen: slice | Tensor) -> ModelInputs:
        """The arguments of some of the images; what has not one entry per image is passed on as it is."""
        extra = tuple(
            value[chosen] if isinstance(value, Tensor) and value.ndim and len(value) == len(self) else value
            for value in self.extra
        )
        return ModelInputs(tuple(tensor[chosen] for tensor in self.tensors), extra)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Everything, in the order of the model's forward; tensors made in inference mode as ordinary ones."""
        return tuple(
            v.clone() if isinstance(v, Tensor) and v.is_inference() else v for v in (*self.tensors, *self.extra)
        )


def checked_logits(logits: object, images: int) -> Float[Tensor, "n classes"]:
    """The model's output if it is one `(n, classes)` tensor of finite scores, else `ValueError`."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images:
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model returned {given}; expected logits of shape ({images}, classes); wrap the model")
    bad = (logits.isnan() | logits.isposinf()).any(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"model returned NaN or infinity for image {int(bad.nonzero()[0, 0])} of the batch; its scores cannot be "
            "explained (look for unnormalised inputs, overflow in half precision, damaged weights)"
        )
    return logits


# The layer itself.


class Recorder:
    """A forward hook (or pre-hook) that keeps what a layer returns (or gets) in the thread that set it.

    Copies, which a later in-place operation cannot reach. With `differentiable` each becomes a leaf that requires
    grad, and what runs after the layer sees a copy of it with gradients switched on: no graph is built before it.
    """

    def __init__(self, *, differentiable: bool, only_first: bool) -> None:
        self.kept: list[Tensor] = []
        self.calls = 0
        self._differentiable, self._only_first = differentiable, only_first
        self._thread: int | None = threading.get_ident()

    def __deepcopy__(self, _memo: object) -> Recorder:
        return self

    def stop(self) -> None:
        """Record no more, not even through a copy of the model that another thread made meanwhile."""
        self._thread = None

    def on_output(self, _module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        """The forward hook."""
        return self._keep(output, "returns")

    def on_input(self, _module: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...] | None:
        """The forward pre-hook: the layer's first argument."""
        replaced = self._keep(inputs[0] if inputs else None, "gets")
        return None if replaced is None else (replaced, *inputs[1:])

    def _keep(self, value: object, verb: str) -> Tensor | None:
        if threading.get_ident() != self._thread:
            return None
        if not isinstance(value, Tensor):
            raise ValueError(f"layer {verb} a {type(value).__name__}, not a tensor; choose a layer inside it")
        self.calls += 1
        if self._only_first and self.calls > 1:
            return None
        leaf = value.detach().clone()
        self.kept.append(leaf)
        if not self._differentiable:
            return None
        if leaf.is_inference():
            raise ValueError("layer runs under torch.inference_mode inside the model; use no_grad there, or Score-CAM")
        leaf.requires_grad_()
        # The caller runs the forward pass without gradients: the graph has to begin here.
        torch.set_grad_enabled(True)
        return leaf.clone()


_NO_PATH = (
    "no gradient leads from the logits back to the layer: it lies off the path to them, or what follows is detached or "
    "computed in inference mode. Choose a layer on the path (explain.layers lists them), or another call="
)


@dataclass(frozen=True)
class Reading:
    """What one forward pass showed: logits, the layer's activation as it is, and how it becomes a grid."""

    logits: Float[Tensor, "n classes"]
    raw: Tensor
    to_grid: Reshape

    @property
    def activation(self) -> Float[Tensor, "n c *grid"]:
        """The activation as a grid, at least in float32."""
        return at_least_float32(self.to_grid(self.raw.detach()))

    def gradient(self, classes: Tensor) -> Float[Tensor, "n c *grid"]:
        """∂(logit of each image's class)/∂activation as a grid, at least in float32.

        Raises:
            ValueError: the logits do not depend on the layer, or the network cannot be differentiated behind it.
        """
        scores = self.logits.gather(1, classes[:, None]).sum()
        if not scores.requires_grad:
            raise ValueError(_NO_PATH)
        try:
            (gradient,) = torch.autograd.grad(scores, self.raw, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            raise _advice(error) from error
        if gradient is None:
            raise ValueError(_NO_PATH)
        return at_least_float32(self.to_grid(gradient))


def at_least_float32(values: Tensor) -> Tensor:
    """float32 for half-precision tensors, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _advice(error: Exception) -> Exception:
    """The reader's words for what autograd says of networks it cannot differentiate; other errors unchanged."""
    text = str(error)
    if "nference tensor" in text:
        return ValueError(
            "the network's parameters were made under torch.inference_mode and cannot be differentiated through; build "
            "or load the network outside it (or copy.deepcopy it there), or use Score-CAM"
        )
    if isinstance(error, NotImplementedError) or "quantized" in text.lower() or "derivative for" in text:
        return ValueError(f"the network cannot be differentiated behind the layer ({text[:200]}); use Score-CAM")
    return error


@dataclass(frozen=True)
class LayerReader:
    """One layer of a model, and what the user said about reading it."""

    model: nn.Module
    layer: nn.Module
    layout: Layout | None = None
    grid: tuple[int, ...] | None = None
    reshape: Reshape | None = None
    call: Call | None = None
    at_input: bool = False
    name: str = field(default="layer")

    def read(self, inputs: ModelInputs, *, differentiable: bool) -> Reading:
        """Logits and the layer's activation, in a forward pass that records gradients behind the layer if asked to.

        Raises:
            ValueError: the layer runs never, or more than once and `call` does not say which; its activation is no
                grid; the model does not return one `(n, classes)` tensor of finite scores.
        """
        reading = self._read(inputs, differentiable=differentiable, outside=torch.no_grad())
        if differentiable and not reading.logits.requires_grad:
            # The model leaves a no_grad block of its own after the layer, which ends ours as well.
            return self._read(inputs, differentiable=True, outside=torch.enable_grad())
        return reading

    def _read(self, inputs: ModelInputs, *, differentiable: bool, outside: Any) -> Reading:
        recorder = Recorder(differentiable=differentiable, only_first=self.call == "first")
        attach = self.layer.register_forward_pre_hook if self.at_input else self.layer.register_forward_hook
        handle = attach(recorder.on_input if self.at_input else recorder.on_output)  # type: ignore[arg-type]
        try:
            with torch.inference_mode(False), outside:
                logits = self.model(*inputs.arguments)
        except RuntimeError as error:
            raise _advice(error) from error
        finally:
            recorder.stop()
            handle.remove()
        if not recorder.calls or (recorder.calls > 1 and self.call is None):
            raise ValueError(
                f"{self.name} ran {recorder.calls} times in one forward pass; choose one that runs exactly once"
                + (", or call='first' or 'last' for a module that is shared" if recorder.calls else "")
            )
        raw = recorder.kept[-1]
        return Reading(checked_logits(logits, len(inputs)), raw, self._grid_of(raw, inputs))

    def _grid_of(self, raw: Tensor, inputs: ModelInputs) -> Reshape:
        if self.reshape is not None:
            return self.reshape
        if raw.ndim < 2 or len(raw) != len(inputs):
            raise ValueError(
                f"{self.name} gives shape {tuple(raw.shape)} for {len(inputs)} images: its first axis is not the batch "
                "(windows or tokens first?); choose the block around it, or give reshape="
            )
        return find_layout(raw.shape, inputs.size, self.model, self.layer, layout=self.layout, grid=self.grid).apply


def submodule(model: nn.Module, layer: nn.Module | str) -> tuple[str, nn.Module]:
    """Name and module of a layer given as either.

    Raises:
        ValueError: no such submodule; the message names the nearest ones.
    """
    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer in modules:
            return layer, modules[layer]
        near = difflib.get_close_matches(layer, modules, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; list them with explain.layers(model)"
        raise ValueError(f"layer {layer!r} is no submodule of {type(model).__name__}{hint}")
    for name, module in modules.items():
        if module is layer:
            return name, module
    raise ValueError(f"layer {type(layer).__name__} is no submodule of {type(model).__name__}")
