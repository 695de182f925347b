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

TFLOP/s counts the arithmetic of one replica's iteration (convolutions and matrix products, forward and backward).
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from repro.models import lenet5
from repro.training.cuda_cycle import Cycle
from repro.training.dfg import DFGNetworks, build_networks, dfg_draws, update_cycle
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.sampling import CycleDraws, ResidentData
from repro.training.tasks import ReplicaTasks

IMAGES = 13_200
READINGS = DFGReadings(filter_weight_images=10)


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


def prepare(replicas: int, device: torch.device, settings: DFGSettings) -> tuple[DFGNetworks, CycleDraws]:
    """Networks and draws of R replicas."""
    tasks = make_tasks(replicas, device)
    torch.manual_seed(0)
    nets = build_networks(lenet5(), tasks, settings, READINGS)
    return nets, dfg_draws(tasks, settings, READINGS, torch.float32)


def seconds(function: Callable[[int], None], cycles: int, device: torch.device) -> float:
    """Median wall seconds of `function(cycle)` after one warm-up call."""
    times = []
    for cycle in range(cycles + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function(cycle)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[cycles // 2]


def time_training(replicas: int, graph: bool, settings: DFGSettings, cycles: int, device: torch.device) -> float:
    """Seconds per replica-iteration of R stacked replicas (R = 1: of the loop)."""
    nets, draws = prepare(replicas, device, settings)

    def updates() -> None:
        update_cycle(nets, draws, settings, READINGS)

    play: Callable[[], None] = updates
    if graph:
        play = Cycle(updates, list(nets.all_networks.values()), list(nets.optimisers.values()), device)

    def cycle(number: int) -> None:
        draws.load(number)
        play()

    return seconds(cycle, cycles, device) / settings.cycle / replicas


def time_public_data_path(settings: DFGSettings, cycles: int, device: torch.device) -> float:
    """Seconds per iteration of one replica whose every iteration builds a shuffled loader for one batch."""
    nets, draws = prepare(1, device, settings)
    decoded = DecodedImages(draws.data)

    def cycle(number: int) -> None:
        draws.load(number)
        for _ in range(settings.cycle):
            images, labels = next(iter(DataLoader(decoded, batch_size=settings.batch, shuffle=True)))
            images.to(device), labels.to(device)
        update_cycle(nets, draws, settings, READINGS)

    return seconds(cycle, cycles, device) / settings.cycle


def flop_per_iteration(settings: DFGSettings) -> float:
    """Floating-point operations of one iteration of one replica, averaged over a cycle."""
    nets, draws = prepare(1, torch.device("cpu"), settings)
    draws.load(0)
    with FlopCounterMode(display=False) as counter:
        update_cycle(nets, draws, settings, READINGS)
    return counter.get_total_flops() / settings.cycle


def measure(replicas: Sequence[int], cycles: int, device: torch.device) -> list[dict[str, float | int | str]]:
    """One row per way and number of replicas."""
    settings = DFGSettings()
    flop = flop_per_iteration(settings)
    timings = [("public data path", 1, time_public_data_path(settings, cycles, device))]
    for graph in (False, True) if device.type == "cuda" else (False,):
        for count in replicas:
            way = ("loop" if count == 1 else "stacked") + (", graph" if graph else "")
            timings.append((way, count, time_training(count, graph, settings, cycles, device)))
    loop = next((spent for way, _, spent in timings if way == "loop"), float("nan"))
    return [
        {
            "way": way,
            "replicas": count,
            "iterations_per_second_per_replica": 1 / (spent * count),
            "replica_iterations_per_second": 1 / spent,
            "speed_up_over_loop": loop / spent,
            "tflop_per_second": flop / spent / 1e12,
        }
        for way, count, spent in timings
    ]


def main() -> None:
    """Print the table and keep it in benchmarks/output/replicas.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--replicas", type=int, nargs="+", default=None, help="default: 1 4 (CPU), 1 16 90 (CUDA)")
    parser.add_argument("--cycles", type=int, default=3, help="timed cycles of 10 iterations; the median counts")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    replicas = arguments.replicas or ([1, 16, 90] if device.type == "cuda" else [1, 4])
    rows = measure(replicas, arguments.cycles, device)
    print(f"{'way':<20}{'R':>4}{'it/s per replica':>18}{'replica-it/s':>14}{'vs loop':>9}{'TFLOP/s':>9}")
    for row in rows:
        print(
            f"{row['way']:<20}{row['replicas']:>4}{row['iterations_per_second_per_replica']:>18.2f}"
            f"{row['replica_iterations_per_second']:>14.2f}{row['speed_up_over_loop']:>9.2f}"
            f"{row['tflop_per_second']:>9.3f}"
        )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    output = Path(__file__).parent / "output" / "replicas.json"
    output.parent.mkdir(exist_ok=True)
    about = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    output.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
