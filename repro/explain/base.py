"""What all explainers share: Captum's interface, batches that shrink, the list of layers worth explaining."""

from __future__ import annotations

import difflib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from jaxtyping import Float
from torch import Tensor, nn

from repro.explain.layer import (
    Call,
    LayerReader,
    Layout,
    ModelInputs,
    Reshape,
    evaluation_mode,
    find_layout,
    submodule,
)
from repro.models.class_scores import Target, as_classes

LayerChoice = nn.Module | str | Sequence[nn.Module | str]

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def upsample_map(maps: Float[Tensor, "n c *grid"], size: tuple[int, ...], *, corners: bool = False) -> Tensor:
    """(Bi-, tri-)linear interpolation to `size`; cell centres are the reference, as in OpenCV, unless `corners`."""
    return F.interpolate(maps, size=size, mode=_INTERPOLATION[len(size)], align_corners=corners)


def check_words(settings: Any) -> None:
    """Hold every `Literal` or bool field of a settings object to the values it allows.

    Raises:
        ValueError: field, value, allowed values and the nearest of them.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value, words = getattr(settings, name), _words(hint)
        if words and not any(type(value) is type(word) and value == word for word in words):
            near = difflib.get_close_matches(str(value), map(str, words), n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}: {value!r}; expected one of {', '.join(map(repr, words))}{meant}")


def _words(hint: Any) -> tuple[Any, ...]:
    """The values that a `Literal`, a bool or a union of them with None allows; empty for other types."""
    if hint is bool:
        return (True, False)
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        words = [_words(part) for part in get_args(hint) if part is not type(None)]
        return (*(word for group in words for word in group), None) if all(words) else ()
    return ()


class ClassActivationMap(LayerAttribution):
    """A class activation map of one layer or of several, in Captum's `LayerAttribution` convention."""

    def __init__(
        self,
        model: nn.Module,
        layer: LayerChoice,
        *,
        layout: Layout | None = None,
        grid: tuple[int, ...] | None = None,
        reshape: Reshape | None = None,
        call: Call | None = None,
    ) -> None:
        """Choose the layer; nothing is computed yet.

        Args:
            model: returns logits `(n, classes)`; explained in evaluation mode and left exactly as found.
            layer: a submodule or its dotted name (`explain.layers(model)` lists those that make sense), or a list of
                them: then every method returns a list of maps. It returns `(n, c, …)`, `(n, …, c)` or tokens.
            layout: `channels_first` or `channels_last`, where the activation's shape leaves both possible.
            grid: rows and columns of a layer of tokens, where the inputs' aspect leaves them open; what is more than
                rows × columns are leading tokens, which are dropped.
            reshape: turns the activation into `(n, c, rows, columns)` in place of both.
            call: `first` or `last` call of a module that runs more than once per forward pass.

        Raises:
            ValueError: `layer` is no submodule of `model`, or one of the words is none of those above.
        """
        for name, value, words in (
            ("layout", layout, ("channels_first", "channels_last")),
            ("call", call, ("first", "last")),
        ):
            if value is not None and value not in words:
                raise ValueError(f"{name}: {value!r}; expected {' or '.join(map(repr, words))}")
        several = isinstance(layer, list | tuple)
        asked: Any = layer if several else [layer]
        chosen = [submodule(model, one) for one in asked]
        if not chosen:
            raise ValueError("layer: an empty list; give at least one layer")
        layers = [module for _, module in chosen]
        super().__init__(model, layers if several else layers[0])
        self._several = several
        self.readers = [
            LayerReader(model, module, layout, grid and tuple(grid), reshape, call, name=name or "model")
            for name, module in chosen
        ]

    @abstractmethod
    def attribute(self, inputs: Any, target: Target = None, additional_forward_args: Any = None) -> Any:
        """Map of each image for its target, at input size."""

    def _each_layer(
        self,
        inputs: Any,
        target: Target,
        additional_forward_args: Any,
        at_input: bool,
        explain: Callable[[LayerReader, ModelInputs, Tensor | None], Tensor],
    ) -> Any:
        """`explain` applied to every chosen layer, after the checks that all methods share."""
        given = ModelInputs.of(inputs, additional_forward_args)
        if given.tensors[0].ndim == 3 and any(isinstance(m, nn.Conv2d) for m in self.forward_func.modules()):
            raise ValueError(f"inputs: shape {tuple(inputs.shape)}; one image needs a batch axis too: inputs[None]")
        with evaluation_mode(self.forward_func), torch.inference_mode(False), torch.no_grad():
            classes = as_classes(target, len(given), given.tensors[0].device)
            maps = [explain(replace(reader, at_input=at_input), given, classes) for reader in self.readers]
        for reader, found in zip(self.readers, maps, strict=True):
            if not bool(found.isfinite().all()):
                raise ValueError(f"map of {reader.name} holds NaN or infinity; the activation or gradient overflowed")
        return maps if self._several else maps[0]


# Batches that shrink when memory runs out, and batch sizes that fit a stated budget.

_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")
# Input, output and one residual or scratch tensor of the widest layer live at the same time.
_LIVE_TENSORS = 3


def run_in_shrinking_batches(step: Callable[[slice], None], total: int, batch_size: int) -> int:
    """Call `step` on consecutive slices of `range(total)`; without memory for one, halve the batch.

    Returns the batch size it ended with. `step` must be repeatable: it writes its results to their places,
    it does not append them. The out-of-memory error is passed on when a batch of one does not fit either;
    every other error at once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size}; expected at least 1")
    start = 0
    while start < total:
        part = slice(start, min(start + batch_size, total))
        if _fits(step, part, last_chance=batch_size == 1):
            start = part.stop
        else:
            batch_size = max(1, batch_size // 2)
    return batch_size


def _fits(step: Callable[[slice], None], part: slice, *, last_chance: bool) -> bool:
    try:
        step(part)
    except RuntimeError as error:
        if last_chance or not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that an allocation failed (CUDA's own type, or the CPU allocator's words)."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


# The layers that make sense.


@dataclass(frozen=True)
class LayerInfo:
    """A layer that can be explained, as `layers` found it."""

    name: str
    kind: str
    """Its class."""
    channels: int
    grid: tuple[int, ...]
    negative: float
    """Share of its activation below zero: Score-CAM's masks and ReLU'd sums want 0 (a layer behind a rectifier)."""
    connected: bool
    """Whether the cells of its grid receive a gradient from the logits; behind a ViT's last attention none do."""


def layers(model: nn.Module, inputs: Any = None, additional_forward_args: Any = None) -> list[LayerInfo]:
    """The layers of a model whose activation is a grid of more than one cell, in the order in which they run.

    Args:
        model: returns logits `(n, classes)`; left as found.
        inputs: a batch of images, of which the first is shown; default: noise of the size in the model's
            `pretrained_cfg` (timm), else 3×224×224.
        additional_forward_args: what else the model's forward takes.

    Good layers are `connected`, late, and not `negative`; which of them is best is a matter of the network.

    >>> from torchvision.models import resnet18
    >>> [(found.name, found.grid) for found in layers(resnet18()) if found.name == "layer4"]
    [('layer4', (7, 7))]
    """
    if inputs is None:
        shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        like = next(model.parameters(), torch.empty(0))
        inputs = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    given = ModelInputs.of(inputs, additional_forward_args).part(slice(0, 1))
    outputs = _outputs_of_all(model, given)
    found = []
    for name, (module, output, gradient) in outputs.items():
        try:
            layout = find_layout(output.shape, given.size, model, module)
        except ValueError:
            continue
        cells = layout.apply(output)
        if torch.Size(layout.grid).numel() > 1:
            connected = gradient is not None and bool(layout.apply(gradient).any())
            negative = float((cells.detach() < 0).float().mean())
            found.append(LayerInfo(name, type(module).__name__, cells.shape[1], layout.grid, negative, connected))
    return found


def _outputs_of_all(model: nn.Module, given: ModelInputs) -> dict[str, tuple[nn.Module, Tensor, Tensor | None]]:
    """Every submodule that runs once and returns a tensor, with its output and the top class's gradient of it."""
    outputs: dict[str, tuple[nn.Module, Tensor]] = {}
    left_out: set[str] = set()

    def keeper(name: str) -> Callable[..., Tensor | None]:
        def keep(module: nn.Module, _inputs: object, output: object) -> Tensor | None:
            if name in outputs or not isinstance(output, Tensor) or not output.is_floating_point():
                left_out.add(name)
                return None
            outputs[name] = (module, output)
            return output.clone()  # what follows may write into it

        return keep

    handles = [module.register_forward_hook(keeper(name)) for name, module in model.named_modules() if name]
    try:
        with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
            tensors = tuple(tensor.detach().clone().requires_grad_() for tensor in given.tensors)
            scores = model(*ModelInputs(tensors, given.extra).arguments).max(dim=1).values.sum()
    finally:
        for handle in handles:
            handle.remove()
    kept = {name: found for name, found in outputs.items() if name not in left_out}
    wanted = [output for _, output in kept.values() if output.requires_grad]
    gradients: tuple[Tensor | None, ...] = ()
    if wanted and scores.requires_grad:
        gradients = torch.autograd.grad(scores, wanted, allow_unused=True)
    found = dict(zip(map(id, wanted), gradients, strict=False))
    return {name: (module, output, found.get(id(output))) for name, (module, output) in kept.items()}


def better_layer(reader: LayerReader, inputs: ModelInputs, *, rectified: bool) -> str | None:
    """Name of the last layer whose grid the logits depend on (and that is nowhere negative, if asked for)."""
    try:
        found = layers(reader.model, inputs.tensors, inputs.extra)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    good = [info for info in found if info.connected and not (rectified and info.negative)]
    return good[-1].name if good else None


def warn(text: str) -> None:
    """A warning at the line that called the explainer."""
    warnings.warn(text, stacklevel=6)


def forward_bytes(model: nn.Module, inputs: ModelInputs) -> int:
    """Estimated peak bytes of activations in one inference pass of one image: thrice the widest leaf output.

    An estimate from one pass, without the allocator's cache and the convolution's work space.
    """
    widest = inputs.tensors[0].nbytes

    def measure(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.nbytes)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [leaf.register_forward_hook(measure) for leaf in leaves]
    try:
        with torch.inference_mode():
            model(*inputs.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return _LIVE_TENSORS * widest
