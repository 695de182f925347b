"""Batches that shrink when memory runs out, and batch sizes that fit a stated budget."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

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
