"""A copy of a network for the masked passes of Score-CAM: same function, faster layout.

The copy shares every tensor it does not have to change with the model, so it costs little memory, and
nothing done to it reaches the model.
"""

from __future__ import annotations

import copy
import operator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# What symbolic tracing raises on control flow that depends on values and on unusual signatures.
_UNTRACEABLE = (
    fx.proxy.TraceError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    AssertionError,
    KeyError,
)


def inference_copy(model: nn.Module) -> nn.Module:
    """A structural copy in evaluation mode that shares all parameters and buffers with `model`."""
    shared: dict[int, object] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                shared[id(value)] = value
    twin = copy.deepcopy(model, shared)
    for module in twin.modules():
        module.training = False
    return twin


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it; return `network` itself where it cannot be traced.

    Folded are pairs in which the convolution runs once and feeds the batch norm only. The result equals the
    network up to rounding *for the control flow that was traced*: the caller compares the two (`agrees`).
    `network` must be a private copy.
    """
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    traced = trace(network) if has_norm else None
    if traced is None:
        return network
    modules = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not _foldable(node, source, modules, calls):
            continue
        conv = modules[str(source.target)]
        traced.set_submodule(str(source.target), fuse_conv_bn_eval(conv, modules[str(node.target)]))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def trace(network: nn.Module) -> fx.GraphModule | None:
    """The network's graph, or None where there is none.

    Control flow that depends on values cannot be traced, and hooks on modules that contain others would be lost.
    """
    if isinstance(network, fx.GraphModule):
        return network
    if any(hooked(module) for module in network.modules() if any(module.children())):
        return None
    try:
        return fx.symbolic_trace(network)
    except _UNTRACEABLE:
        return None


def hooked(module: nn.Module) -> bool:
    """Whether a forward hook is set on the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _foldable(node: fx.Node, source: fx.Node, modules: dict[str, nn.Module], calls: list[fx.Node]) -> bool:
    norm, conv = modules.get(str(node.target)), modules.get(str(source.target))
    if source.op != "call_module" or type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d:
        return False
    if norm.running_mean is None or hooked(norm) or hooked(conv):
        return False
    same_conv = [call for call in calls if modules[str(call.target)] is conv]
    return len(source.users) == 1 and len(same_conv) == 1


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


def agrees(logits: Tensor, reference: Tensor, *, tolerance: float) -> bool:
    """Whether two sets of logits differ by at most `tolerance` times the largest reference logit."""
    return bool((logits.float() - reference.float()).abs().max() <= tolerance * reference.float().abs().max())


# Convolutions of a private copy in one call with the sum and the rectifier after them, filters packed beforehand.
#
# oneDNN, which makes PyTorch's convolutions on a CPU, adds and rectifies while a result is still in the cache, and
# wants filters in a layout of its own that it otherwise makes anew at every call. PyTorch offers both to its compiler
# only, as operators of the `mkldnn` namespace that may go or change; where they are missing, nothing is fused.

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_RECTIFIERS = {F.relu, torch.relu, torch.relu_}


def can_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine's CPU and this PyTorch can run fused convolutions in `dtype`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operators = ("_convolution_pointwise", "_reorder_convolution_weight", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


def fuse_convolutions(network: nn.Module, image: Float[Tensor, "1 c h w"]) -> nn.Module:
    """Put fused convolutions in place of plain ones; return `network` itself where it cannot be traced.

    `network` must be a private copy in evaluation mode, and `image` one that `can_fuse` takes. As with folding, the
    result equals the network *for the control flow that was traced*: the caller compares the two.
    """
    traced = trace(network)
    if traced is None:
        return network
    shapes = _Shapes(traced)
    shapes.run(image)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and _plain(modules[node.target], node, traced):
            _fuse(traced, node, modules, shapes.found)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def pack_filters(network: nn.Module, batch: int) -> None:
    """Pack the filters of every fused convolution; after `convert`, which cannot read them any more."""
    for module in network.modules():
        if isinstance(module, FusedConvolution):
            module.pack(batch)


class _Shapes(fx.Interpreter):
    """Runs a network and keeps the shape of every tensor on the way."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def _plain(module: nn.Module, node: fx.Node, traced: fx.GraphModule) -> bool:
    """Whether a call is one of a convolution that the fused one can stand for."""
    if type(module) is not nn.Conv2d or hooked(module) or isinstance(module.padding, str):
        return False
    calls = [other for other in traced.graph.nodes if other.op == "call_module" and other.target == node.target]
    return module.padding_mode == "zeros" and len(calls) == 1


def _fuse(
    traced: fx.GraphModule, node: fx.Node, modules: dict[str, nn.Module], shapes: dict[fx.Node, torch.Size]
) -> None:
    """Replace one convolution, with the sum and the rectifier after it if nothing else reads what lies between."""
    name, image, chain = str(node.target), node.args[0], [node]
    convolution = modules[name]
    assert isinstance(image, fx.Node) and isinstance(convolution, nn.Conv2d)
    read: list[fx.Node] = [image]
    if (addition := _only_user(node)) is not None and _is_addition(addition, shapes):
        read += [other for other in addition.all_input_nodes if other is not node]
        chain.append(addition)
    if (rectifier := _only_user(chain[-1])) is not None and _is_rectifier(rectifier, modules):
        chain.append(rectifier)
    rectify = chain[-1] is rectifier
    traced.set_submodule(name, FusedConvolution(convolution, shapes[image], rectify=rectify))
    with traced.graph.inserting_before(chain[-1]):
        fused = traced.graph.call_module(name, tuple(read))
    shapes[fused] = shapes[chain[-1]]
    chain[-1].replace_all_uses_with(fused)
    for replaced in reversed(chain):
        traced.graph.erase_node(replaced)


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
