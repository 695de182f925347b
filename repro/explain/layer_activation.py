"""Reading a layer's activation without leaving a trace in the model.

Everything here is shared by the explainers: the model in evaluation mode for as long as a block lasts, the
activation of one layer (with the graph that hangs *behind* it, when gradients are wanted), token grids,
targets.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
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
