"""A private copy of a network for Score-CAM's masked passes: the same function in a faster shape.

Batch norm folded, channels-last, on a CPU sums and rectifiers fused into the convolutions before them. The copy shares
every tensor that it does not have to change, and nothing done here reaches beyond it: `torch.fx`'s own tracing swaps
methods of `nn.Module` for the whole process, and is not used.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repro.explain.layer import Recorder


def inference_copy(model: nn.Module) -> nn.Module:
    """A structural copy in evaluation mode that shares all parameters and buffers with `model`.

    Raises whatever `copy.deepcopy` raises of a model that holds a lock, an open file, a tensor with a graph.
    """
    shared: dict[int, object] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                shared[id(value)] = value
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        module.training = False
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Recorder)]:
                del hooks[key]
    return twin


def convert(network: nn.Module, *, dtype: torch.dtype | None, channels_last: bool) -> nn.Module:
    """Give a private copy its layout: floating tensors in `dtype` (None: unchanged), 4-d ones channels-last.

    Tensors are replaced, never changed in place, because the copy may share them with the model.
    """
    # The original is kept beside its replacement: a freed tensor's id could come back.
    converted: dict[int, tuple[Tensor, Tensor]] = {}

    def replacement(tensor: Tensor) -> Tensor:
        if id(tensor) not in converted:
            new = tensor.detach()
            if dtype is not None and new.is_floating_point():
                new = new.to(dtype)
            if channels_last and new.ndim == 4:
                new = new.contiguous(memory_format=torch.channels_last)
            converted[id(tensor)] = (tensor, new)
        return converted[id(tensor)][1]

    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(replacement(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = replacement(buffer)
    return network


# The graph of a private copy, found by running it on proxies.


class _Tracer(fx.Tracer):
    """Symbolic tracing in which only modules of the private copy answer differently, and only while it lasts."""

    def graph_of(self, network: nn.Module, arguments: int) -> fx.Graph:
        self.root, self.graph, self.tensor_attrs = network, fx.Graph(), {}
        inputs = [self.create_proxy("placeholder", f"input_{index}", (), {}) for index in range(arguments)]
        leaves = {
            module: name
            for name, module in network.named_modules()
            if module is not network and self.is_leaf_module(module, name)
        }
        classes = {leaf: type(leaf) for leaf in leaves}
        try:
            for leaf, name in leaves.items():
                leaf.__class__ = self._recording(type(leaf), name)
            output = network(*inputs)
        finally:
            for leaf, kind in classes.items():
                leaf.__class__ = kind
        self.create_node("output", "output", (self.create_arg(output),), {})
        return self.graph

    def _recording(self, kind: type[nn.Module], name: str) -> type[nn.Module]:
        def call(_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_module", name, args, kwargs)

        return type(kind.__name__, (kind,), {"__call__": call})


class Traced(nn.Module):
    """A private copy that runs node by node (compiled graphs leave their source in a table that only grows)."""

    def __init__(self, network: nn.Module, arguments: int = 1) -> None:
        super().__init__()
        if any(hooked(module) for module in network.modules() if any(module.children())):
            raise TypeError("hooks on modules that contain others would be lost")
        self.root = network
        self.graph = _Tracer().graph_of(network, arguments)
        self.modules_called: dict[str, nn.Module] = dict(network.named_modules())
        self._interpreter: fx.Interpreter | None = None

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of one that the graph calls."""
        self.root.set_submodule(name, module)
        self.modules_called[name] = module

    def calls(self, name: str) -> int:
        """How often the graph calls a module."""
        return sum(node.op == "call_module" and node.target == name for node in self.graph.nodes)

    def forward(self, *inputs: Tensor) -> Any:
        """The graph's output."""
        if self._interpreter is None:
            self._interpreter = fx.Interpreter(self.root, graph=self.graph)
        # An interpreter holds the values of one run: threads that share the network have one each.
        return copy.copy(self._interpreter).run(*inputs)


def hooked(module: nn.Module) -> bool:
    """Whether a forward hook is set on the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fold_batch_norm(network: Traced) -> None:
    """Fold each batch norm into the convolution before it, where that runs once and feeds the batch norm only."""
    for node in list(network.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, conv = network.modules_called[str(node.target)], network.modules_called[str(source.target)]
        if type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d or norm.running_mean is None:
            continue
        if hooked(norm) or hooked(conv) or len(source.users) > 1 or network.calls(str(source.target)) > 1:
            continue
        network.replace(str(source.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(source)
        network.graph.erase_node(node)


# Convolutions of a private copy in one call with the sum and the rectifier after them, filters packed beforehand.
#
# oneDNN, which makes PyTorch's convolutions on a CPU, adds and rectifies while a result is still in the cache, and
# wants filters in a layout of its own that it otherwise makes anew at every call. PyTorch offers both to its compiler
# only, as operators of the `mkldnn` namespace that may go or change: what fails is caught, and nothing is fused.

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_RECTIFIERS = {F.relu, torch.relu, torch.relu_}


class FusedConvolution(nn.Module):
    """A convolution, then a sum and a rectifier if there are any: max(0, w * x + b + added)."""

    def __init__(self, convolution: nn.Conv2d, input_shape: torch.Size, *, rectify: bool) -> None:
        super().__init__()
        assert not isinstance(convolution.padding, str)
        self.weight: Tensor = convolution.weight
        self.bias = convolution.bias
        self.geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self.input_shape = input_shape
        self.rectify = rectify

    def pack(self, batch: int) -> None:
        """Lay the filters out for inputs of `batch` images; other batches still work, a little slower."""
        shape = [batch, *self.input_shape[1:]]
        packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight.detach(), *self.geometry, shape)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(
        self, images: Float[Tensor, "n c h w"], added: Float[Tensor, "n k a b"] | None = None
    ) -> Float[Tensor, "n k a b"]:
        """The convolution's result, `added` to it and rectified."""
        if added is None:
            after = "relu" if self.rectify else "none"
            return torch.ops.mkldnn._convolution_pointwise(
                images, self.weight, self.bias, *self.geometry, after, [], ""
            )
        after_sum = "relu" if self.rectify else None
        return torch.ops.mkldnn._convolution_pointwise.binary(
            images, added, self.weight, self.bias, *self.geometry, "add", 1.0, after_sum, [], None
        )


def fuse_convolutions(network: Traced, *inputs: Tensor) -> None:
    """Put fused convolutions in place of plain ones; shapes are those of one pass of `inputs`."""
    shapes = _Shapes(network.root, graph=network.graph)
    shapes.run(*inputs)
    for node in list(network.graph.nodes):
        if node.op == "call_module" and len(node.args) == 1 and _plain(network, str(node.target)):
            _fuse(network, node, shapes.found)
    network.graph.lint()


def pack_filters(network: nn.Module, batch: int) -> None:
    """Pack the filters of every fused convolution; after `convert`, which cannot read them any more."""
    for module in network.modules():
        if isinstance(module, FusedConvolution):
            module.pack(batch)


class _Shapes(fx.Interpreter):
    """Runs a network and keeps the shape of every tensor on the way."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, graph=graph)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def _plain(network: Traced, name: str) -> bool:
    """Whether a call is one of a convolution that the fused one can stand for."""
    module = network.modules_called[name]
    if type(module) is not nn.Conv2d or hooked(module) or isinstance(module.padding, str):
        return False
    return module.padding_mode == "zeros" and network.calls(name) == 1


def _fuse(network: Traced, node: fx.Node, shapes: dict[fx.Node, torch.Size]) -> None:
    """Replace one convolution, with the sum and the rectifier after it if nothing else reads what lies between."""
    name, image, chain = str(node.target), node.args[0], [node]
    convolution = network.modules_called[name]
    assert isinstance(image, fx.Node) and isinstance(convolution, nn.Conv2d)
    read: list[fx.Node] = [image]
    if (addition := _only_user(node)) is not None and _is_addition(addition, shapes):
        read += [other for other in addition.all_input_nodes if other is not node]
        chain.append(addition)
    if (rectifier := _only_user(chain[-1])) is not None and _is_rectifier(rectifier, network.modules_called):
        chain.append(rectifier)
    network.replace(name, FusedConvolution(convolution, shapes[image], rectify=chain[-1] is rectifier))
    with network.graph.inserting_before(chain[-1]):
        fused = network.graph.call_module(name, tuple(read))
    shapes[fused] = shapes[chain[-1]]
    chain[-1].replace_all_uses_with(fused)
    for replaced in reversed(chain):
        network.graph.erase_node(replaced)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_addition(node: fx.Node, shapes: dict[fx.Node, torch.Size]) -> bool:
    """A sum of two different tensors of one shape, without a factor."""
    if node.op != "call_function" or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return False
    first, second = node.args
    both = isinstance(first, fx.Node) and isinstance(second, fx.Node) and first is not second
    return both and shapes.get(first) == shapes.get(second) == shapes.get(node)  # type: ignore[arg-type]


def _is_rectifier(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.ReLU and not hooked(module)
    return node.target in _RECTIFIERS or (node.op == "call_method" and node.target in ("relu", "relu_"))
