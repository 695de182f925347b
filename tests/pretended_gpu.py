"""A pretended GPU: CPU tensors that are counted as CUDA's, so that a device bug shows on a machine without one.

Inside `pretended_gpu()` a tensor moved to "cuda" stays where it is and is remembered as moved. Operations on tensors of
both sides are errors where CUDA refuses them; copies between the sides and operations that make the host wait are
counted by the line of `repro` that asked for them. Only calls made from Python are seen.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import CPUAccelerator
from lightning_fabric.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from repro.data.images import constant

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# The host waits for the value of these.
WAITING = {
    "item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__contains__", "nonzero", "argwhere", "equal",
    "allclose", "unique", "masked_select", "bincount", "numpy", "__array__",
}  # fmt: skip
# CUDA takes an index or a scalar from the other side, and bookkeeping has no kernel.
MAY_MIX = {"backward", "grad", "load_state_dict", "_has_compatible_shallow_copy_type", "copy_", "__set__"}
INDEXING = {"__getitem__", "__setitem__", "index_put_"}
FACTORIES = set(_device_constructors())


def line_of_repro() -> str:
    """The innermost line of the package on the stack, as `studies/x.py:12`."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/repro/" in name and "/site-packages/" not in name:
            return f"{name.rsplit('/repro/', 1)[1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "test"


class PretendedGPU(TorchFunctionMode):
    """Remembers which tensors were moved; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Any = WeakTensorKeyDictionary()
        self.copies: Counter[str] = Counter()
        """Copies from host to device and back, by line."""
        self.waits: Counter[str] = Counter()
        """Operations for which the host waits, by line."""
        self.work: Counter[str] = Counter()
        """Convolutions, matrix products and normalisations, by device."""

    def device_of(self, tensor: Tensor) -> torch.device:
        return CUDA if tensor in self.moved else CPU

    def put(self, value: Any, device: torch.device) -> Any:
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                if device == CUDA:
                    self.moved[leaf] = True
                else:
                    self.moved.pop(leaf, None)
        return value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return self._property(func, args)
        if (name == "to" and args and isinstance(args[0], Tensor)) or name in ("cpu", "cuda"):
            return self._to(name, func, args, kwargs)
        wanted = kwargs.pop("device", None) if func in FACTORIES or name.startswith("new_") else None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {self.device_of(tensor) for tensor in tensors}
        if func in FACTORIES:
            target = torch.device(wanted) if wanted is not None else (devices.pop() if devices else CPU)
            if target.type == "meta":
                return func(*args, **kwargs, device=target)
            self._count_data(name, target, devices)
            return self.put(func(*args, **kwargs), CUDA if target.type == "cuda" else CPU)
        self._check(name, args, tensors, devices)
        target = CUDA if CUDA in devices else CPU
        if name in ("copy_", "__set__", "__setitem__"):
            target = self.device_of(args[0]) if name != "__set__" else self.device_of(tensors[-1])
            out = func(*args, **kwargs)
            self.put(args[0], target)
            return out
        if name in ("conv2d", "linear", "matmul", "batch_norm", "layer_norm", "scaled_dot_product_attention"):
            self.work[target.type] += 1
        return self.put(func(*args, **kwargs), target)

    def _property(self, func: Any, args: Any) -> Any:
        what = getattr(getattr(func, "__self__", None), "__name__", "")
        device = self.device_of(args[0])
        if what == "device":
            return device
        if what in ("is_cuda", "is_cpu"):
            return device.type == what.removeprefix("is_")
        return self.put(func(*args), device)

    def _to(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        tensor, source = args[0], self.device_of(args[0])
        given = [a for a in args[1:] if isinstance(a, str | torch.device)] + [kwargs.pop("device", None)]
        others = [a for a in args[1:] if isinstance(a, Tensor)]
        target = torch.device(name) if name != "to" else next((torch.device(a) for a in given if a is not None), source)
        if others:
            target = self.device_of(others[0])
        rest = [a for a in args[1:] if isinstance(a, torch.dtype)] + [other.dtype for other in others]
        if target.type == "meta":
            return func(*args, **kwargs)
        kwargs.pop("non_blocking", None)
        out = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if target.type == source.type:
            return self.put(out, source)
        self.copies[line_of_repro()] += 1
        return self.put(out.clone() if out is tensor else out, CUDA if target.type == "cuda" else CPU)

    def _count_data(self, name: str, target: torch.device, sources: set[torch.device]) -> None:
        if name in ("tensor", "as_tensor", "asarray") and target.type == "cuda" and CUDA not in sources:
            self.copies[line_of_repro()] += 1

    def _check(self, name: str, args: Any, tensors: list[Tensor], devices: set[torch.device]) -> None:
        if CUDA not in devices:
            return
        masks = [t for t in tensors[1:] if t.dtype == torch.bool] if name in INDEXING else []
        if name in WAITING or masks:
            self.waits[f"{line_of_repro()} ({name})"] += 1
            if name in ("numpy", "__array__"):
                raise TypeError(f"{line_of_repro()}: can't convert a cuda tensor to numpy")
        if len(devices) < 2:
            return
        strangers = [t for t in tensors if self.device_of(t) == CPU]
        if name in ("copy_", "__setitem__") or (name in INDEXING and self.device_of(args[0]) == CUDA):
            self.copies[line_of_repro()] += 1
        elif name not in MAY_MIX and not all(t.ndim == 0 for t in strangers):
            raise RuntimeError(f"{line_of_repro()}: {name} got tensors on cuda:0 and cpu")


class _Generator(torch.Generator):
    """A generator that says it lives where it was asked to."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.pretended = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.pretended

    def manual_seed(self, seed: int) -> _Generator:
        super().manual_seed(seed)
        return self


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Let `torch.cuda` look available, and count what happens on it."""
    gpu = PretendedGPU()
    made, autocast = torch.Tensor._make_subclass, torch.autocast

    def make(cls: Any, data: Tensor, *rest: Any, **named: Any) -> Any:
        return gpu.put(made(cls, data, *rest, **named), gpu.device_of(data))

    class Autocast(autocast):  # type: ignore[misc,valid-type]
        def __init__(self, device_type: str, *rest: Any, **named: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *rest, **named)

    answers = {
        "is_available": True, "device_count": 0, "synchronize": None, "empty_cache": None, "memory_allocated": 0,
        "max_memory_allocated": 1 << 20, "reset_peak_memory_stats": None, "get_rng_state_all": [],
        "set_rng_state_all": None, "manual_seed_all": None, "manual_seed": None, "get_device_name": "pretended",
        "mem_get_info": (70 << 30, 80 << 30), "is_current_stream_capturing": False,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "_make_subclass", staticmethod(make))
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None, raising=False)
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
        constant.cache_clear()  # constants of an earlier pretence
        with gpu:
            yield gpu
        constant.cache_clear()


def pretended_fabric(**_: Any) -> Fabric:
    """Lightning's Fabric on the pretended GPU, whose own accelerator would ask the driver."""

    class Accelerator(CPUAccelerator):
        def setup_device(self, device: torch.device) -> None:
            """Any device will do."""

    return Fabric(strategy=SingleDeviceStrategy(CUDA, accelerator=Accelerator()))
