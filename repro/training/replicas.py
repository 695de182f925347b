"""R copies of one network as one object: stacking, packing on a GPU and replay as a CUDA graph live here alone.

By default every training is one replica (R = 1, a plain call without vmap) and trainings follow each other: on a CPU
stacking brings nothing. On CUDA as many replicas as memory holds are stacked: parameters in one leaf each, a vmapped
forward, ordinary autograd and optimisers. Losses are reduced per replica and summed, so each replica gets exactly its
own gradient; elementwise optimisers on the stacked leaves are exactly R optimisers. What that gains on a GPU is
unmeasured (`benchmarks/replicas.py` measures it). `torch.compile` must not be put around this: it silently drops the
gradient penalty of a vmapped critic.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from repro.training.run_store import Resumable
from repro.training.sampling import CycleDraws, stream_seed

M = TypeVar("M", bound=nn.Module)


class _Applied(nn.Module):
    """Makes a function of a module callable through `functional_call`."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.module, *inputs)


def _call(module: nn.Module, *inputs: Tensor) -> Any:
    return module(*inputs)


class ReplicaNetwork:
    """R networks of one architecture as one object; every input and output has a leading replica axis.

    `parameters` and `buffers` map names to stacked tensors of shape (R, …), buffers updated in place.

    Args:
        networks: the R initialised networks; they are copied.
        frozen: prefixes of parameter names that are not trained.
        optimise: makes the optimiser of the trainable leaves, where there are any.
        frozen_norms: modules below `frozen` stay in evaluation mode, so that batch statistics are fixed too.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        frozen: Sequence[str] = (),
        optimise: Callable[[list[Tensor]], Optimizer] | None = None,
        frozen_norms: bool = True,
    ) -> None:
        if not networks:
            raise ValueError("networks is empty; give one network per replica")
        parameters, self.buffers = stack_module_state(list(networks))
        self.parameters: dict[str, Tensor] = {
            name: value.detach().requires_grad_(not name.startswith(tuple(frozen)))
            for name, value in parameters.items()
        }
        self.size = len(networks)
        self.optimiser = optimise(self.trainable) if optimise and self.trainable else None
        self._skeleton = copy.deepcopy(networks[0])
        self._fixed = tuple(frozen) if frozen_norms else ()
        self.train()

    def __call__(self, *inputs: Tensor) -> Any:
        """Apply every network to its own inputs; all inputs have shape (R, n, …)."""
        return self.apply(_call, *inputs)

    def apply(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """`function(network, *inputs)` of every network and its own inputs; outputs get the replica axis too."""
        module = _Applied(self._skeleton, function)

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
        """Set training or evaluation mode (batch norm, dropout) of all replicas; what is fixed stays in evaluation."""
        self._skeleton.train(mode)
        for name, module in self._skeleton.named_modules():
            if self._fixed and f"{name}.".startswith(self._fixed):
                module.eval()
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


def descend(loss: Float[Tensor, " r"], *networks: ReplicaNetwork) -> None:
    """One step of the networks' optimisers down the summed per-replica losses; nothing else gets a gradient."""
    leaves = [leaf for network in networks for leaf in network.trainable]
    step(networks, dict(zip(leaves, torch.autograd.grad(loss.sum(), leaves), strict=True)))


def step(networks: Sequence[ReplicaNetwork], gradients: dict[Tensor, Tensor]) -> None:
    """One step of the networks' optimisers along given gradients, by leaf."""
    for leaf, gradient in gradients.items():
        leaf.grad = gradient
    for network in networks:
        if network.optimiser is not None:
            network.optimiser.step()


def resumable(networks: dict[str, ReplicaNetwork]) -> dict[str, Resumable]:
    """What a checkpoint holds of networks in training: their tensors and their optimisers."""
    state: dict[str, Resumable] = dict(networks)
    for name, network in networks.items():
        if network.optimiser is not None:
            state[f"{name}_optimiser"] = network.optimiser
    return state


def stored_tensors(networks: dict[str, ReplicaNetwork]) -> dict[str, Tensor]:
    """`<replica>/<network>.<name>` → tensor, as kept with a result."""
    return {
        f"{r}/{label}.{name}": value
        for label, network in networks.items()
        for r in range(network.size)
        for name, value in network.replica_state(r).items()
    }


def build_replicas(build: Callable[[], M], seeds: Sequence[int], device: torch.device) -> list[M]:
    """One freshly initialised network per seed; the global random state is left as it was."""
    networks = []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(build().to(device))
    return networks


class Cycle:
    """One cycle of updates, called with its number; on CUDA it is captured at the first call and replayed.

    A small network's step is bound by the launching of about a thousand kernels; a replayed graph launches none of
    them from the host. The function must have static shapes, update in place and never synchronise with the host. The
    capture waits for the first call since restoring a checkpoint replaces the optimisers' tensors.

    Dropout is seeded by the first replica's seed and the cycle, and the global random state left as it was; so networks
    with dropout must not be stacked.
    """

    def __init__(self, function: Callable[[], None], networks: Sequence[ReplicaNetwork], draws: CycleDraws) -> None:
        self._function, self._networks, self.draws = function, networks, draws
        self._device = draws.device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, cycle: int) -> None:
        """Train for one cycle."""
        self.draws.load(cycle)
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if cuda else []):
            torch.manual_seed(stream_seed(self.draws.seeds[0], "dropout", cycle))
            if not cuda:
                self._function()
                return
            if self._graph is None:
                self._graph = self._capture()
            self._graph.replay()

    def divide_learning_rates(self, by: float) -> None:
        """Divide every learning rate and capture anew: a rate is a plain number inside the graph."""
        for network in self._networks:
            for group in network.optimiser.param_groups if network.optimiser else []:
                group["lr"] /= by
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
            states = network.optimiser.state.values() if network.optimiser else ()
            for j, state in enumerate(states):
                tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
                found |= {(i, f"optimiser/{j}/{name}"): value for name, value in tensors.items()}
        return found


def replicas_that_fit(wanted: int, trial: Callable[[], object], device: torch.device, share: float = 0.8) -> int:
    """How many replicas to train at once: 1 on a CPU, else as many as a share of free memory holds, at most `wanted`.

    `trial` is one cycle of one replica on the path that training takes, graph included, so that its peak is seen.
    """
    if device.type != "cuda":
        return 1
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_reserved(device)
    trial()
    torch.cuda.synchronize(device)
    needed = max(1, torch.cuda.memory_reserved(device) - before)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(wanted, int(share * free / needed)))


def in_groups(members: Sequence[int], size: int, train: Callable[[Sequence[int]], None]) -> None:
    """Call `train` on successive groups of `size` members; from where memory runs out on, of half as many."""
    start = 0
    while start < len(members):
        group = members[start : start + size]
        try:
            train(group)
        except torch.OutOfMemoryError:
            if len(group) == 1:
                raise
            size = len(group) // 2
            torch.cuda.empty_cache()
        else:
            start += len(group)
