"""DFG's iteration and DELTA's knock-out beside their plain forms: `python benchmarks/dfg_step.py`.

* Iteration (LeNet-5, one thread, the paper's batch and update ratios, one cycle = 10 iterations): the critic's gradient
  written out, on channels-last features, and pooling by `maximum` where no gradient is needed; beside autograd with
  double backward and the library's pooling.
* Critic step alone, the same two forms.
* Knock-out losses of VGG-16's two regularised convolutions: only what lies behind the convolution re-runs; beside whole
  forward passes.

The two forms take turns and are checked to agree; processor time counts, so that other work on the machine does not.
Writes benchmarks/results/dfg_step.json (`--quick`: a trial, into output/).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from speed_record import Comparison, SpeedRecord, compared, environment
from torch import Tensor, nn

from repro.losses.delta import knockout_loss_increase
from repro.losses.dfg import critic_loss, gradient_penalty, sample_cross_entropy
from repro.models import SplitClassifier, feature_gan, lenet5, vgg16_32
from repro.models.split_classifier import HalvingMaxPool
from repro.training import dfg
from repro.training.dfg import DFGNetworks, build_networks, dfg_cycle
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.replicas import descend
from repro.training.sampling import ReplicaBatch, ReplicaTasks, ResidentData

READINGS = DFGReadings(filter_weight_images=10)
ITERATION_BAR, KNOCKOUT_BAR = 1.25, 1.6


def plain_critic_step(nets: DFGNetworks, batch: ReplicaBatch, settings: DFGSettings) -> None:
    """Eq. (1) as it is written, by autograd twice."""
    with torch.no_grad():
        real, generated = nets.target.extractor(batch.images), nets.generate(batch)
    penalty = gradient_penalty(nets.critic, real, generated, batch.mixing)
    scores_real, scores_generated = nets.critic(torch.cat([real, generated], dim=1)).chunk(2, dim=1)
    loss = critic_loss(scores_real, scores_generated, penalty, settings.penalty)
    descend(loss, nets.critic)
    nets.note(critic=loss, penalty=penalty)


def with_library_pooling(network: SplitClassifier) -> SplitClassifier:
    """The network with `nn.MaxPool2d` in place of ours."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, HalvingMaxPool):
                setattr(parent, name, nn.MaxPool2d(2))
    return network


def plain_knockout(network: SplitClassifier, conv: nn.Conv2d, images: Tensor, labels: Tensor) -> Tensor:
    """One whole forward pass per filter, its weights and bias at zero."""
    with torch.no_grad():
        losses = [sample_cross_entropy(network(images), labels).mean()]
        for j in range(conv.out_channels):
            kept = conv.weight[j].clone(), conv.bias[j].clone()
            conv.weight[j], conv.bias[j] = 0, 0
            losses.append(sample_cross_entropy(network(images), labels).mean())
            conv.weight[j], conv.bias[j] = kept
    return torch.stack(losses[1:]) - losses[0]


def make_tasks() -> ReplicaTasks:
    """One task on random grey images."""
    images = torch.randint(0, 256, (1000, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ResidentData(images, torch.arange(1000) % 10)
    return ReplicaTasks(data, data, 10, [torch.arange(1000)], [torch.arange(0)], [0])


def prepared(plain: bool) -> DFGNetworks:
    """The four networks, with one pooling or the other."""
    torch.manual_seed(0)
    source = with_library_pooling(lenet5()) if plain else lenet5()
    return build_networks(source, make_tasks(), DFGSettings(), READINGS)


def milliseconds(call: Callable[..., object], *arguments: object) -> float:
    """Processor time of a call."""
    start = time.process_time()
    call(*arguments)
    return 1e3 * (time.process_time() - start)


@contextmanager
def plain_form() -> Iterator[None]:
    """The present form of the updates is replaced by the plain one within the block."""
    kept = dfg.update_critic, feature_gan.channels_last
    dfg.update_critic, feature_gan.channels_last = plain_critic_step, lambda maps: maps
    try:
        yield
    finally:
        dfg.update_critic, feature_gan.channels_last = kept


def iteration(rounds: int) -> Comparison:
    """Milliseconds per iteration, averaged over a cycle."""
    settings = DFGSettings()
    ours, plain = (dfg_cycle(prepared(form), make_tasks(), settings, READINGS) for form in (False, True))
    spent: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        spent[0].append(milliseconds(ours, number) / settings.cycle)
        with plain_form():
            spent[1].append(milliseconds(plain, number) / settings.cycle)
    return _compared("DFG iteration, LeNet-5", spent, "autograd, library's pooling", ITERATION_BAR)


def critic_step(rounds: int) -> Comparison:
    """Milliseconds per critic step; both forms must give one loss."""
    settings = DFGSettings()
    spent: list[list[float]] = [[], []]
    nets = prepared(plain=False), prepared(plain=True)
    draws = dfg_cycle(nets[0], make_tasks(), settings, READINGS).draws
    draws.load(0)
    batch = draws.batch(0, 0)
    for _ in range(10 * rounds + 1):
        spent[0].append(milliseconds(dfg.update_critic, nets[0], batch, settings))
        with plain_form():
            spent[1].append(milliseconds(plain_critic_step, nets[1], batch, settings))
    torch.testing.assert_close(nets[0].losses["critic"], nets[1].losses["critic"], rtol=1e-2, atol=1e-2)
    return _compared("critic step of DFG, LeNet-5", spent, "autograd twice", None)


Knockout = Callable[[SplitClassifier, nn.Conv2d, Tensor, Tensor], Tensor]


def knockout(rounds: int, images: int) -> Comparison:
    """Milliseconds for all 64 + 512 filters of VGG-16; the two must be bit-equal.

    With few images both read the first linear layer's 400 MB for every filter, which hides what is saved.
    """
    torch.manual_seed(0)
    network = vgg16_32().eval()
    inputs, labels = torch.rand(images, 3, 32, 32), torch.arange(images) % 10
    forms: tuple[Knockout, Knockout] = (knockout_loss_increase, plain_knockout)

    def measure(form: Knockout, into: list[Tensor], count: int) -> None:
        convolutions = network.regularised_convolutions()
        into[:] = [form(network, conv, inputs[:count], labels[:count]) for conv in convolutions]  # type: ignore[arg-type]

    spent: list[list[float]] = [[], []]
    found: list[list[Tensor]] = [[], []]
    for count in (1, *[images] * rounds):  # one image warms up
        for own, weights, form in zip(spent, found, forms, strict=True):
            own.append(milliseconds(measure, form, weights, count))
    equal = all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    name = f"DELTA's knock-out, VGG-16, {images} images, {'bit-equal' if equal else 'NOT EQUAL'}"
    return _compared(name, spent, "whole forward passes", KNOCKOUT_BAR)


def _compared(name: str, spent: list[list[float]], peer: str, bar: float | None) -> Comparison:
    ours, theirs = (own[1:] for own in spent)  # the first round warms up
    return compared(name, ours, theirs, peer, unit="ms", threads=torch.get_num_threads(), bar=bar)


def main() -> None:
    """Print the comparisons and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of each: does it run?")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rounds = 1 if quick else 5
    comparisons = [iteration(rounds), critic_step(rounds), knockout(1, 1 if quick else 32)]
    for one in comparisons:
        print(f"{one.name:<60}{one.ours:>9.1f}{one.peer or 0:>9.1f} {one.unit}{one.ratio:>7.2f} (demanded {one.bar})")
    record = SpeedRecord(name="dfg_step", environment=environment(cuda=False), comparisons=comparisons, details={})
    print(f"written: {record.save(quick=quick)}")


if __name__ == "__main__":
    main()
