"""A copy of a network for the masked passes of Score-CAM: same function, faster layout.

The copy shares every tensor it does not have to change with the model, so it costs little memory, and
nothing done to it reaches the model.
"""

import copy

import torch
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
