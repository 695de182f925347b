"""Cost of an EGA training step against a plain CAM step on the same batch: `python benchmarks/ega_step.py`.

One EGA step is an attack (forward and the input half of backward) and forward and backward of twice the images. With
one unit for each forward, input-gradient and weight-gradient pass a plain step costs 3 and an EGA step 2 + 6: the floor
is 8/3. Steps are interleaved and the median of their ratios is reported; on a CPU processor time counts, so that other
work on the machine does not. Writes benchmarks/results/ega_step.json (`--quick`: a trial, into output/).
"""

import argparse
import time
from collections.abc import Callable

import torch
from speed_record import Comparison, SpeedRecord, compared, environment

from repro.data.images import ImageSet
from repro.models import CAMNetwork, googlenet_cam, small_cam, vgg16_cam
from repro.training import CAMSettings, EGASettings, Method, StepContext, TrainingSettings, prepare_network
from repro.training.batches import Batches
from repro.training.cam import loss_terms, sgd, transformed

BUILDERS: dict[str, Callable[[int], CAMNetwork]] = {"small": small_cam, "vgg16": vgg16_cam, "googlenet": googlenet_cam}
TARGET = 2.9


def stepper(network: CAMNetwork, data: ImageSet, settings: Method, device: torch.device) -> Callable[[], float]:
    """A function that trains one step, on the same batch, and returns its seconds."""
    ingredients = settings.ingredients()
    prepare_network(network, ingredients).to(memory_format=_layout(device)).to(device).train()
    optimizer = sgd(network, network.head_modules(), settings.training)
    batches = Batches(data, settings.training, 0, device)

    def step() -> float:
        started = _now(device)
        context = StepContext(network, settings.training.normalisation, batches.random(0))
        with torch.autocast(device.type, torch.bfloat16, settings.training.precision == "bf16-mixed"):
            batch = transformed(batches.at(0, context.random), ingredients, context)
            terms = loss_terms(network.cam, batch, ingredients, context, settings.reduction)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        return _now(device) - started

    return step


def measure(name: str, side: int, batch_size: int, repeats: int, precision: str, device: torch.device) -> Comparison:
    """The two step times of one network and their ratio."""
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
    ids = [str(index) for index in range(batch_size)]
    data = ImageSet("noise", "train", images, torch.zeros(batch_size, dtype=torch.int64), ["a", "b"], ids)
    training = TrainingSettings.model_validate(
        {"batch_size": batch_size, "resize": None, "crop": None, "precision": precision}
    )
    plain = stepper(BUILDERS[name](200), data, CAMSettings(training=training), device)
    adversarial = stepper(BUILDERS[name](200), data, EGASettings(training=training), device)
    for _ in range(2):
        plain(), adversarial()
    pairs = [(1000 * plain(), 1000 * adversarial()) for _ in range(repeats)]
    return compared(
        f"EGA training step, {name}, {side}×{side}, batch {batch_size}, {precision}",
        [ega for _, ega in pairs],
        [cam for cam, _ in pairs],
        "plain CAM step",
        unit="ms",
        threads=torch.get_num_threads(),
        ratio_is="ours / peer",
        bar=TARGET,
    )


def _layout(device: torch.device) -> torch.memory_format:
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _now(device: torch.device) -> float:
    """Seconds of a GPU's wall clock once it is idle, or of processor time."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Parse the command line and measure."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(BUILDERS), default="vgg16")
    parser.add_argument("--side", type=int, default=224 if cuda else 64, help="image side in pixels")
    parser.add_argument("--batch-size", type=int, default=30 if cuda else 8)
    parser.add_argument("--repeats", type=int, default=20 if cuda else 7)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--quick", action="store_true", help="a small network, one pair: does it run?")
    given = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    if given.quick:
        given.network, given.side, given.batch_size, given.repeats = "small", 32, 2, 1
    found = measure(given.network, given.side, given.batch_size, given.repeats, given.precision, device)
    print(
        f"{found.name} on {device}: plain {found.peer:.0f} ms, EGA {found.ours:.0f} ms, ratio {found.ratio:.2f} "
        f"({'within' if found.met else 'above'} {TARGET}; floor 2.67; median of {found.rounds} pairs)"
    )
    name = "ega_step-cuda" if cuda else "ega_step"
    record = SpeedRecord(name=name, environment=environment(cuda=cuda), comparisons=[found], details={"floor": 8 / 3})
    print(f"written: {record.save(quick=given.quick)}")


if __name__ == "__main__":
    main()
