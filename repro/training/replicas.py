"""R copies of one network, trained at once: stacked parameters, vmapped forward, ordinary autograd and optimisers.

Losses are reduced per replica and summed, so each replica gets exactly its own gradient; elementwise optimisers
(Adam, SGD with momentum) on the stacked leaves are exactly R optimisers. `torch.compile` must not be put around this:
it silently drops the gradient penalty of a vmapped critic.

With one replica the forward is a plain call, without vmap. On a CPU stacking brings nothing (the work is bound by
arithmetic), so there every replica is trained on its own; see `replicas_that_fit`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils._pytree import tree_map

M = TypeVar("M", bound=nn.Module)


class _Method(nn.Module):
    """Makes any method of a module callable through `functional_call`."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.module, self.method)(*inputs)


class ReplicaNetwork:
    """R networks of one architecture as one object; every input and output has a leading replica axis.

    Args:
        networks: the R initialised networks; they are copied.
        frozen: prefixes of parameter names that are not trained.

    Attributes:
        parameters: name → stacked leaf tensor of shape (R, …).
        buffers: name → stacked buffer (batch-norm statistics, updated in place).
    """

    def __init__(self, networks: Sequence[nn.Module], frozen: Sequence[str] = ()) -> None:
        if not networks:
            raise ValueError("networks is empty; give one network per replica")
        parameters, self.buffers = stack_module_state(list(networks))
        self.parameters: dict[str, Tensor] = {
            name: value.detach().requires_grad_(not name.startswith(tuple(frozen)))
            for name, value in parameters.items()
        }
        self.size = len(networks)
        self._skeleton = copy.deepcopy(networks[0])

    def __call__(self, *inputs: Tensor, method: str = "forward") -> Any:
        """Apply `method` of every network to its own inputs; all inputs have shape (R, n, …)."""
        module = _Method(self._skeleton, method)

        def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *own: Tensor) -> Any:
            state = {f"module.{name}": value for name, value in (parameters | buffers).items()}
            return functional_call(module, state, own)

        if self.size == 1:
            parameters, buffers, own = tree_map(lambda t: t.squeeze(0), (self.parameters, self.buffers, inputs))
            return tree_map(lambda t: t.unsqueeze(0), call(parameters, buffers, *own))
        return torch.vmap(call, randomness="different")(self.parameters, self.buffers, *inputs)

    @property
    def trainable(self) -> list[Tensor]:
        """The stacked leaves an optimiser should step."""
        return [value for value in self.parameters.values() if value.requires_grad]

    def train(self, mode: bool = True) -> "ReplicaNetwork":
        """Set training or evaluation mode (batch norm, dropout) of all replicas."""
        self._skeleton.train(mode)
        return self

    def network(self, replica: int) -> nn.Module:
        """A plain copy of one replica, detached, in the current mode."""
        module = copy.deepcopy(self._skeleton)
        module.load_state_dict(self.replica_state(replica))
        return module.requires_grad_(False)

    def replica_state(self, replica: int) -> dict[str, Tensor]:
        """State dict of one replica (copies)."""
        return {name: value[replica].detach().clone() for name, value in (self.parameters | self.buffers).items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Stacked parameters and buffers."""
        return {name: value.detach() for name, value in (self.parameters | self.buffers).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore in place, so that optimisers and captured graphs keep their addresses."""
        with torch.no_grad():
            for name, value in (self.parameters | self.buffers).items():
                value.copy_(state[name])


def gradient_step(
    loss: Float[Tensor, " r"], networks: Sequence[ReplicaNetwork], optimisers: Sequence[torch.optim.Optimizer]
) -> None:
    """One descent step on the summed per-replica losses; only the given networks' parameters get a gradient."""
    leaves = [leaf for network in networks for leaf in network.trainable]
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True):
        leaf.grad = gradient
    for optimiser in optimisers:
        optimiser.step()


def build_replicas(build: Callable[[], M], seeds: Sequence[int], device: torch.device) -> list[M]:
    """One freshly initialised network per seed; the global random state is left as it was."""
    networks = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(build().to(device))
    return networks


def replicas_that_fit(wanted: int, trial: Callable[[], object], device: torch.device, share: float = 0.8) -> int:
    """How many replicas to train at once: 1 on a CPU, else as many as free memory holds, at most `wanted`.

    Args:
        wanted: replicas there are to train.
        trial: runs a few iterations with one replica, so that its peak memory can be measured.
        device: where training happens.
        share: part of the free memory to use.
    """
    if device.type != "cuda":
        return 1
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial()
    torch.cuda.synchronize(device)
    needed = max(1, torch.cuda.max_memory_allocated(device) - before)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(wanted, int(share * free / needed)))


# Replay a fixed cycle of training steps as one CUDA graph; on a CPU the plain function is called.
#
# A small network's step is bound by the launching of about a thousand kernels; a replayed graph launches none of them
# from the host. A captured function has static shapes, updates in place and never synchronises with the host; whatever
# changes from cycle to cycle is copied into tensors it reads before it is called.


class Cycle:
    """One cycle of updates, callable; on CUDA captured at the first call.

    The capture waits for the first call since restoring a checkpoint replaces the optimisers' tensors.

    Args:
        function: the updates; its optimisers must have been made with `capturable=True` where they have that option.
        networks: every network it trains.
        optimisers: every optimiser it steps.
        device: where it runs.
    """

    def __init__(
        self,
        function: Callable[[], None],
        networks: Sequence[ReplicaNetwork],
        optimisers: Sequence[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self._function = function
        self._networks = networks
        self._optimisers = optimisers
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Train for one cycle."""
        if self._device.type != "cuda":
            self._function()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def forget(self) -> None:
        """Capture anew at the next call; needed after a learning rate, a plain number inside the graph, changed."""
        self._graph = None

    def _capture(self) -> torch.cuda.CUDAGraph:
        before = {key: value.clone() for key, value in self._tensors().items()}
        # CUDA wants a few eager runs on a side stream first; they really train, so their effect is undone in place.
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._function()
        torch.cuda.current_stream(self._device).wait_stream(side)
        for key, value in self._tensors().items():
            # Optimiser state is made by the first step; all of it (moments, step counts) starts at zero.
            value.copy_(before[key]) if key in before else value.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._function()
        return graph

    def _tensors(self) -> dict[tuple[int, str], Tensor]:
        found: dict[tuple[int, str], Tensor] = {}
        for i, network in enumerate(self._networks):
            found |= {(i, name): value for name, value in network.state_dict().items()}
        for i, optimiser in enumerate(self._optimisers):
            for j, state in enumerate(optimiser.state.values()):
                found |= {
                    (i, f"optimiser/{j}/{name}"): value for name, value in state.items() if isinstance(value, Tensor)
                }
        return found
