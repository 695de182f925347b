"""Reading a layer's activation without leaving a trace in the model.

Everything here is shared by the explainers: the model in evaluation mode for as long as a block lasts, the
activation of one layer (with the graph that hangs *behind* it, when gradients are wanted), token grids,
targets.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Target = int | Sequence[int] | Tensor | None
Reshape = Callable[[Tensor], Tensor]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in evaluation mode inside the block, each back in its own mode after it, error or not.

    The flags are set directly: `model.train()` would force one mode on all submodules (a frozen batch norm
    inside a training network would be woken up).
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def tokens_to_grid(activation: Tensor) -> Float[Tensor, "n c h w"]:
    """Turn `(n, tokens, c)` into `(n, c, h, w)`; an activation that is a grid already passes through.

    With `tokens` a square all tokens are patches; with `tokens - 1` a square the first one is a class
    token and is dropped. Raises `ValueError` for any other number of tokens or dimensions.
    """
    if activation.ndim == 4:
        return activation
    if activation.ndim != 3:
        raise ValueError(
            f"layer activation has shape {tuple(activation.shape)}; expected (n, c, h, w) or (n, tokens, c). "
            "Choose another layer or pass reshape="
        )
    tokens = activation.shape[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        side = math.isqrt(tokens - 1)
        if side * side != tokens - 1:
            raise ValueError(f"{tokens} tokens are no square grid, with or without a class token; pass reshape=")
        activation = activation[:, 1:]
    return activation.transpose(1, 2).unflatten(2, (side, side))


@contextmanager
def recorded_outputs(layer: nn.Module, *, differentiable: bool) -> Iterator[list[Tensor]]:
    """Record what `layer` returns during the block, as copies that a later in-place operation cannot reach.

    With `differentiable=True` each output becomes a leaf that requires grad, and what runs after the layer
    sees a copy of it with gradients switched on: no graph is built before the layer, and an in-place ReLU
    behind it leaves the leaf as it was.
    """
    outputs: list[Tensor] = []

    def record(_module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            raise ValueError(f"layer returns a {type(output).__name__}, not a tensor; choose a layer inside it")
        if not differentiable:
            outputs.append(output.detach().clone())
            return None
        leaf = output.detach().clone().requires_grad_()
        outputs.append(leaf)
        # The caller runs the forward pass without gradients: the graph has to begin here.
        torch.set_grad_enabled(True)
        return leaf.clone()

    handle: RemovableHandle = layer.register_forward_hook(record)
    try:
        yield outputs
    finally:
        handle.remove()


def forward_with_activation(
    model: nn.Module, layer: nn.Module, inputs: Tensor, *, differentiable: bool
) -> tuple[Float[Tensor, "n classes"], Tensor]:
    """Logits of `inputs` and the untouched activation of `layer`, whatever the shape the layer gives it.

    Raises `ValueError` when the layer runs never or more than once in a forward pass, or when the model
    does not return one `(n, classes)` tensor.
    """
    with torch.inference_mode(False), torch.no_grad():
        plain = inputs.clone() if inputs.is_inference() else inputs
        with recorded_outputs(layer, differentiable=differentiable) as outputs:
            logits = model(plain)
    if len(outputs) != 1:
        raise ValueError(f"layer ran {len(outputs)} times in one forward pass; choose one that runs exactly once")
    return checked_logits(logits, len(inputs)), outputs[0]


def checked_logits(logits: object, images: int) -> Float[Tensor, "n classes"]:
    """The model's output if it is one `(n, classes)` tensor of scores, else `ValueError`."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != images:
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model returned {given}; expected logits of shape ({images}, classes); wrap the model")
    return logits


def resolve_target(target: Target, logits: Float[Tensor, "n classes"]) -> Int[Tensor, " n"]:
    """Class index per image: one integer for all, one per image, or (None) the predicted class."""
    images, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    indices = torch.as_tensor(target, device=logits.device)
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise ValueError(f"target has dtype {indices.dtype}; expected class indices (integers)")
    if indices.ndim == 0:
        indices = indices.expand(images)
    if indices.shape != (images,):
        raise ValueError(f"target has shape {tuple(indices.shape)}; expected () or ({images},), one class per image")
    if images and not 0 <= int(indices.min()) <= int(indices.max()) < classes:
        raise ValueError(f"target {indices.tolist()} lies outside the model's classes 0…{classes - 1}")
    return indices.long()


def slice_target(target: Target, part: slice) -> Target:
    """The part of `target` that belongs to the images `inputs[part]`."""
    if target is None or isinstance(target, int):
        return target
    if isinstance(target, Tensor) and target.ndim == 0:
        return target
    return target[part]


# What all explainers share: Captum's interface, the layer check, ReLU and upsampling.


def upsample_map(maps: Float[Tensor, "n c h w"], size: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Bilinear interpolation with cell centres as reference (align_corners=False), as OpenCV resizes."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class ClassActivationMap(LayerAttribution):
    """A class activation map of one layer, in Captum's `LayerAttribution` convention.

    Args:
        model: returns logits `(n, classes)`; explained in evaluation mode and left exactly as found.
        layer: a submodule that runs once per forward pass and returns `(n, c, h, w)` or `(n, tokens, c)`.
        reshape: turns the layer's activation into `(n, c, h, w)`; default: token grids are detected, a
            class token is dropped (`tokens_to_grid`).

    Raises:
        ValueError: `layer` is no submodule of `model`.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, *, reshape: Reshape | None = None) -> None:
        if not any(module is layer for module in model.modules()):
            raise ValueError(f"layer {type(layer).__name__} is no submodule of {type(model).__name__}")
        super().__init__(model, layer)
        self.reshape: Reshape = reshape or tokens_to_grid

    @abstractmethod
    def attribute(self, inputs: Float[Tensor, "n c h w"], target: Target = None) -> Float[Tensor, "n 1 h w"]:
        """Map of each image for its target (None: the predicted class), at input size, >= 0, unnormalised."""


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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` says that an allocation failed (CUDA's own type, or the CPU allocator's words)."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def forward_bytes(model: nn.Module, image: Tensor) -> int:
    """Estimated peak bytes of activations in one inference pass of one image: thrice the widest leaf output.

    An estimate from one pass, without the allocator's cache and the convolution's work space.
    """
    widest = image.nbytes

    def measure(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.nbytes)

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [leaf.register_forward_hook(measure) for leaf in leaves]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return _LIVE_TENSORS * widest


def batch_within_budget(model: nn.Module, image: Tensor, budget_mib: float, wanted: int) -> int:
    """The largest batch up to `wanted` whose estimated activations fit in `budget_mib` MiB; at least one."""
    return max(1, min(wanted, int(budget_mib * 2**20 / forward_bytes(model, image))))
