"""DFG iterations per second per replica: stacked replicas, a plain loop, and the public code's way of loading data.

    python benchmarks/replicas.py                         # CPU: a few cycles, R = 1 and 4
    python benchmarks/replicas.py --device cuda --replicas 1 16 90 --cycles 20

LeNet-5 with the paper's batch and update ratios (one cycle = 10 iterations) on as many random images as
Fashion-MNIST's 2-major subset has; arithmetic does not depend on what the images show. Ways that are timed:

* `loop`: one replica after the other, data resident, every kernel launched from Python;
* `loop, graph`: the same with each cycle replayed as a CUDA graph (CUDA only);
* `stacked`, `stacked, graph`: all replicas in one vmapped step, without and with a graph;
* `public data path`: the loop fed as the released code feeds itself: every iteration builds a shuffled loader over
  decoded images and takes its first batch. Written from a description of that code; its evaluation of the test set
  every 100 steps is left out.

The ways take turns, cycle by cycle; medians are reported. Writes benchmarks/results/replicas.json, replicas-cuda.json
on a GPU (`--quick`: a trial, into output/).

TFLOP/s counts the arithmetic of one replica's iteration (convolutions and matrix products, forward and backward).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from speed_record import Comparison, SpeedRecord, compared, environment
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from repro.models import lenet5
from repro.training.dfg import DFGNetworks, build_networks, dfg_cycle, update_cycle
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import Cycle
from repro.training.sampling import ReplicaTasks, ResidentData

IMAGES = 13_200
READINGS = DFGReadings(filter_weight_images=10)
GPU_REPLICAS, GPU_BAR = 90, 10.0


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Image by image: to PIL, to tensor, normalise; as torchvision's data sets with the usual transforms do."""

    def __init__(self, data: ResidentData) -> None:
        from torchvision.transforms import Compose, Normalize, ToPILImage, ToTensor

        self.images, self.labels = data.images.cpu(), data.labels.cpu()
        self.transform = Compose([ToPILImage(), ToTensor(), Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def make_tasks(replicas: int, device: torch.device) -> ReplicaTasks:
    """R tasks on random grey images; every replica has its own 90 % of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 1, 32, 32), dtype=torch.uint8, generator=generator)
    data = ResidentData(images, torch.arange(IMAGES) % 10).to(device)
    subsets = [torch.arange(IMAGES)[torch.arange(IMAGES) % 10 != r % 10] for r in range(replicas)]
    return ReplicaTasks(data, data, 10, subsets, [torch.arange(0)] * replicas, list(range(replicas)))


def prepare(replicas: int, device: torch.device, settings: DFGSettings) -> tuple[DFGNetworks, Cycle]:
    """Networks of R replicas and a cycle of their training."""
    tasks = make_tasks(replicas, device)
    torch.manual_seed(0)
    nets = build_networks(lenet5(), tasks, settings, READINGS)
    return nets, dfg_cycle(nets, tasks, settings, READINGS)


@dataclass(frozen=True)
class Way:
    """One way of training: a function that does a cycle, for how many replicas, and its seconds so far."""

    name: str
    replicas: int
    cycle: Callable[[int], None]
    spent: list[float] = field(default_factory=list)
    """Wall seconds per replica-iteration, one entry a cycle."""


def training_way(replicas: int, graph: bool, settings: DFGSettings, device: torch.device) -> Way:
    """R stacked replicas (R = 1: the loop's body)."""
    nets, play = prepare(replicas, device, settings)

    def eager(number: int) -> None:
        play.draws.load(number)
        update_cycle(nets, play.draws, settings, READINGS)

    name = ("loop" if replicas == 1 else "stacked") + (", graph" if graph else "")
    return Way(name, replicas, play if graph else eager)


def public_way(settings: DFGSettings, device: torch.device) -> Way:
    """One replica whose every iteration builds a shuffled loader for one batch."""
    nets, play = prepare(1, device, settings)
    decoded = DecodedImages(play.draws.data)

    def cycle(number: int) -> None:
        play.draws.load(number)
        for _ in range(settings.cycle):
            images, labels = next(iter(DataLoader(decoded, batch_size=settings.batch, shuffle=True)))
            images.to(device), labels.to(device)
        update_cycle(nets, play.draws, settings, READINGS)

    return Way("public data path", 1, cycle)


def take_turns(ways: Sequence[Way], settings: DFGSettings, cycles: int, device: torch.device) -> None:
    """Time every way in every cycle, after one cycle of each to warm up."""
    for number in range(cycles + 1):
        for way in ways:
            synchronise(device)
            start = time.perf_counter()
            way.cycle(number)
            synchronise(device)
            if number:
                way.spent.append((time.perf_counter() - start) / settings.cycle / way.replicas)


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if that is the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flop_per_iteration(settings: DFGSettings) -> float:
    """Floating-point operations of one iteration of one replica, averaged over a cycle."""
    nets, play = prepare(1, torch.device("cpu"), settings)
    play.draws.load(0)
    with FlopCounterMode(display=False) as counter:
        update_cycle(nets, play.draws, settings, READINGS)
    return counter.get_total_flops() / settings.cycle


def measure(replicas: Sequence[int], cycles: int, device: torch.device) -> list[Way]:
    """All ways that make sense on the device, timed; the loop is always among them."""
    settings = DFGSettings()
    counts = sorted({1, *replicas})
    graphs = (False, True) if device.type == "cuda" else (False,)
    ways = [training_way(count, graph, settings, device) for graph in graphs for count in counts]
    ways.append(public_way(settings, device))
    take_turns(ways, settings, cycles, device)
    return ways


def comparisons(ways: Sequence[Way], device: torch.device) -> list[Comparison]:
    """Every way beside the plain loop, per replica-iteration; the loop itself beside the public data path."""
    loop = next(way for way in ways if way.name == "loop")
    public = next(way for way in ways if way.name == "public data path")
    pairs = [(loop, public), *((way, loop) for way in ways if way not in (loop, public))]
    found = []
    for ours, peer in pairs:
        demanded = device.type == "cuda" and ours.replicas == GPU_REPLICAS and ours.name == "stacked, graph"
        found.append(
            compared(
                f"DFG iteration of one replica, LeNet-5, {ours.name}, R = {ours.replicas}",
                [1e3 * spent for spent in ours.spent],
                [1e3 * spent for spent in peer.spent],
                "plain loop" if peer is loop else peer.name,
                unit="ms",
                threads=torch.get_num_threads(),
                bar=GPU_BAR if demanded else None,
            )
        )
    return found


def throughput(ways: Sequence[Way]) -> list[dict[str, float | int | str]]:
    """Iterations and arithmetic per second of every way."""
    flop = flop_per_iteration(DFGSettings())
    medians = [(way, statistics.median(way.spent)) for way in ways]
    return [
        {
            "way": way.name,
            "replicas": way.replicas,
            "iterations_per_second_per_replica": 1 / (spent * way.replicas),
            "replica_iterations_per_second": 1 / spent,
            "tflop_per_second": flop / spent / 1e12,
        }
        for way, spent in medians
    ]


def main() -> None:
    """Print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--replicas", type=int, nargs="+", default=None, help="default: 1 4 (CPU), 1 16 90 (CUDA)")
    parser.add_argument("--cycles", type=int, default=3, help="timed cycles of 10 iterations; the median counts")
    parser.add_argument("--quick", action="store_true", help="one cycle, 1 and 2 replicas: does it run?")
    given = parser.parse_args()
    device = torch.device(given.device)
    cuda = device.type == "cuda"
    replicas = given.replicas or ([1, 16, GPU_REPLICAS] if cuda else [1, 4])
    ways = measure([2] if given.quick else replicas, 1 if given.quick else given.cycles, device)
    rows = throughput(ways)
    print(f"{'way':<20}{'R':>4}{'it/s per replica':>18}{'replica-it/s':>14}{'TFLOP/s':>9}")
    for row in rows:
        print(
            f"{row['way']:<20}{row['replicas']:>4}{row['iterations_per_second_per_replica']:>18.2f}"
            f"{row['replica_iterations_per_second']:>14.2f}{row['tflop_per_second']:>9.3f}"
        )
    record = SpeedRecord(
        name="replicas-cuda" if cuda else "replicas",
        environment=environment(cuda=cuda),
        comparisons=comparisons(ways, device),
        details={"throughput": rows},
    )
    print(f"written: {record.save(quick=given.quick)}")


if __name__ == "__main__":
    main()
