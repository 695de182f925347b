"""Cost of an EGA training step against a plain CAM step on the same batch: `python benchmarks/ega_step.py`.

One EGA step is an attack (forward and the input half of backward) and forward and backward of twice the images. With
one unit for each forward, input-gradient and weight-gradient pass a plain step costs 3 and an EGA step 2 + 6: the floor
is 8/3. Steps are interleaved and the median of their ratios is reported; on a CPU processor time counts, so that other
work on the machine does not.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from repro.data.image_set import ImageSet
from repro.models import CAMNetwork, googlenet_cam, small_cam, vgg16_cam
from repro.training import EGASettings, StepContext, TrainingSettings, prepare_network
from repro.training.batches import Batches
from repro.training.cam import loss_terms, transformed
from repro.training.optimisation import sgd

BUILDERS: dict[str, Callable[[int], CAMNetwork]] = {"small": small_cam, "vgg16": vgg16_cam, "googlenet": googlenet_cam}
TARGET = 2.9


def stepper(network: CAMNetwork, data: ImageSet, settings: EGASettings, device: torch.device) -> Callable[[], float]:
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


def measure(name: str, side: int, batch_size: int, repeats: int, precision: str, device: torch.device) -> None:
    """Print the two step times and their ratio for one network."""
    images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
    ids = [str(index) for index in range(batch_size)]
    data = ImageSet("noise", "train", images, torch.zeros(batch_size, dtype=torch.int64), ["a", "b"], ids)
    training = TrainingSettings.model_validate(
        {"batch_size": batch_size, "resize": None, "crop": None, "precision": precision}
    )
    plain = stepper(BUILDERS[name](200), data, EGASettings.baseline(training), device)
    adversarial = stepper(BUILDERS[name](200), data, EGASettings.paper(training), device)
    for _ in range(2):
        plain(), adversarial()
    pairs = [(plain(), adversarial()) for _ in range(repeats)]
    ratio = statistics.median(second / first for first, second in pairs)
    times = [1000 * statistics.median(column) for column in zip(*pairs, strict=True)]
    verdict = "within" if ratio <= TARGET else "above"
    print(
        f"{name} {side}×{side} batch {batch_size} {precision} on {device}: plain {times[0]:.0f} ms, "
        f"EGA {times[1]:.0f} ms, ratio {ratio:.2f} ({verdict} {TARGET}; floor 2.67; median of {repeats} pairs)"
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
    arguments = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    measure(arguments.network, arguments.side, arguments.batch_size, arguments.repeats, arguments.precision, device)


if __name__ == "__main__":
    main()
