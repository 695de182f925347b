"""Replay a fixed cycle of training steps as one CUDA graph; on a CPU the plain function is called.

A small network's step is bound by the launching of about a thousand kernels; a replayed graph launches none of them
from the host. A captured function has static shapes, updates in place and never synchronises with the host; whatever
changes from cycle to cycle is copied into tensors it reads before it is called.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from repro.training.replicas import ReplicaNetwork


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
