"""Score-CAM and Grad-CAM beside pytorch-grad-cam, torchcam and Captum: time, peak memory, equal maps.

    python benchmarks/explain.py                  # ResNet-18, 224 x 224, 1 and 2 threads, 5 rounds
    python benchmarks/explain.py --quick          # 64 x 64, one round: does it run?
    python benchmarks/explain.py --device cuda

Contestants take turns inside every round, so that a busy machine disturbs all of them alike; the median over rounds
of the ratio within a round is reported, in CPU seconds for one thread and in wall seconds otherwise. Memory is what
one explanation adds to the peak of a process that has done a plain forward pass. Weights are random with random batch
norm statistics: nothing is downloaded. Peers come with the `bench` extra; a missing one is left out, and the record
says which were there. Writes benchmarks/results/explain.json, explain-cuda.json on a GPU (`--quick`: a trial, into
output/).
"""

import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import torchvision
import typer
from captum.attr import LayerGradCam
from speed_record import Comparison, RatioIs, SpeedRecord, compared, environment
from torch import Tensor, nn

from repro.explain import SCORE_CAM_PRESETS, EngineSettings, GradCAM, ScoreCAM
from repro.explain.engine import MaskRule, default_batch_size
from repro.explain.layer import LayerReader, ModelInputs
from repro.explain.network_copy import Traced, convert, fold_batch_norm, inference_copy

Liveness = Literal["few_dead", "many_dead"]
Explain = Callable[[], Tensor | None]

TARGET = 3
PEERS = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam"}
FP32_BAR, BF16_BAR, FLOOR_BAR, NOT_SLOWER, NOT_MORE = 1.4, 2.5, 1.1, 1.0, 1.0
FP32 = {peer: f"repro fp32 (as {peer})" for peer in PEERS}
BF16 = "repro bf16 (as torchcam)"


@dataclass(frozen=True)
class Timing:
    """Seconds per explained image of one contestant, one entry a round."""

    comparison: str
    network: str
    threads: int
    contestant: str
    wall: list[float]
    cpu: list[float]

    def seconds(self, device: str) -> list[float]:
        """What counts: CPU seconds for one thread on a CPU, wall seconds otherwise."""
        return self.cpu if self.threads == 1 and device == "cpu" else self.wall


@dataclass(frozen=True)
class Subject:
    """What all contestants explain."""

    model: nn.Module
    layer: nn.Module
    image: Tensor


def build_subject(liveness: Liveness, size: int, device: str) -> Subject:
    """ResNet-18's last stage; with `many_dead` six tenths of its 512 channels are zero everywhere."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.layer4[1].bn2.bias += 0.5
        if liveness == "many_dead":
            model.layer4[1].bn2.bias[:307] -= 1e4
    return Subject(model.to(device), model.layer4, torch.randn(1, 3, size, size).to(device))


def own_copy(subject: Subject) -> Subject:
    """The same for one contestant alone: some peers leave hooks on the model, which would slow down the others."""
    return copy.deepcopy(subject)


def ours(subject: Subject, preset: str, dtype: torch.dtype | None) -> Explain:
    """Our Score-CAM in a peer's reading."""
    engine = EngineSettings(dtype=dtype)
    explainer = ScoreCAM(subject.model, subject.layer, SCORE_CAM_PRESETS[preset], engine=engine)
    return lambda: explainer.attribute_lowres(subject.image, TARGET)


def pytorch_grad_cam_method(subject: Subject, method: str) -> Explain:
    """pytorch-grad-cam's `ScoreCAM` or `GradCAM` with its defaults."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    explainer = getattr(pytorch_grad_cam, method)(subject.model, [subject.layer])
    return lambda: torch.as_tensor(explainer(subject.image, [ClassifierOutputTarget(TARGET)]))[None]


def torchcam_method(subject: Subject, method: str) -> Explain:
    """torchcam's `ScoreCAM` or `GradCAM` with its defaults, the forward pass it needs included."""
    import torchcam.methods

    def explain() -> Tensor:
        with getattr(torchcam.methods, method)(subject.model, "layer4") as extractor:
            return extractor(TARGET, subject.model(subject.image))[0][None]

    return explain


def bare_forwards(subject: Subject, dtype: torch.dtype | None) -> Explain:
    """One forward pass per live channel in the best layout of the library's own operations, masks made beforehand."""
    network = Traced(inference_copy(subject.model))
    fold_batch_norm(network)
    convert(network, dtype=dtype, channels_last=True)
    batch_size = default_batch_size(subject.image)
    passes = live_channels(subject)
    images = subject.image.expand(batch_size, -1, -1, -1) * torch.rand(batch_size, 1, 1, 1).to(subject.image)
    batch = images.to(dtype or images.dtype).contiguous(memory_format=torch.channels_last)

    def forward_all() -> None:
        with torch.inference_mode():
            for start in range(0, passes, batch_size):
                network(batch[: min(batch_size, passes - start)])

    return forward_all


def live_channels(subject: Subject) -> int:
    """Channels of the layer that are not constant on the image."""
    reading = LayerReader(subject.model, subject.layer).read(ModelInputs.of(subject.image), differentiable=False)
    return int((~MaskRule().blank(reading.activation)).sum())


def score_cam_contestants() -> dict[str, Callable[[Subject], Explain]]:
    """Every implementation of Score-CAM and the floor, by name; each is built when its turn comes."""
    contestants: dict[str, Callable[[Subject], Explain]] = {
        FP32["pytorch-grad-cam"]: lambda subject: ours(subject, "pytorch-grad-cam", None),
        FP32["torchcam"]: lambda subject: ours(subject, "torchcam", None),
        BF16: lambda subject: ours(subject, "torchcam", torch.bfloat16),
        "bare forwards fp32": lambda subject: bare_forwards(subject, None),
        "bare forwards bf16": lambda subject: bare_forwards(subject, torch.bfloat16),
    }
    if installed("pytorch-grad-cam"):
        contestants["pytorch-grad-cam"] = lambda subject: pytorch_grad_cam_method(subject, "ScoreCAM")
    if installed("torchcam"):
        contestants["torchcam"] = lambda subject: torchcam_method(subject, "ScoreCAM")
    return contestants


def grad_cam_contestants(subject: Subject) -> dict[str, Explain]:
    """Every implementation of Grad-CAM, by name; ours and Captum's include the upsampling."""
    own, its = own_copy(subject), own_copy(subject)
    explainer = GradCAM(own.model, own.layer)
    captum = LayerGradCam(its.model, its.layer)
    size = subject.image.shape[-2:]

    def captum_map() -> Tensor:
        cam = captum.attribute(its.image, TARGET, relu_attributions=True)
        return F.interpolate(cam, size=size, mode="bilinear")

    contestants: dict[str, Explain] = {
        "repro": lambda: explainer.attribute(own.image, TARGET),
        "captum": captum_map,
    }
    if installed("pytorch-grad-cam"):
        contestants["pytorch-grad-cam"] = pytorch_grad_cam_method(own_copy(subject), "GradCAM")
    if installed("torchcam"):
        contestants["torchcam"] = torchcam_method(own_copy(subject), "GradCAM")
    return contestants


def installed(peer: str) -> bool:
    """Whether a peer of the `bench` extra can be imported."""
    return importlib.util.find_spec(PEERS[peer]) is not None


def measure(comparison: str, network: str, contestants: dict[str, Explain], threads: int, rounds: int) -> list[Timing]:
    """Time all contestants, taking turns in each round; `map_differences` has warmed them up."""
    torch.set_num_threads(threads)
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, explain in contestants.items():
            synchronise()
            started, cpu_started = time.perf_counter(), time.process_time()
            explain()
            synchronise()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - cpu_started)
    return [Timing(comparison, network, threads, name, wall[name], cpu[name]) for name in contestants]


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def minmax(cam: Tensor) -> Tensor:
    """To 0…1, as the peers return their maps."""
    return (cam - cam.min()) / (cam.max() - cam.min())


def map_differences(subject: Subject, contestants: dict[str, Explain]) -> dict[str, float]:
    """Largest difference of min-max maps between ours and each peer's, and between bf16 and fp32."""
    size = tuple(subject.image.shape[-2:])
    maps = {name: minmax(cam) for name, explain in contestants.items() if (cam := explain()) is not None}
    reference = maps[FP32["torchcam"]]
    differences = {"bf16 and fp32": float((maps[BF16] - reference).abs().max())}
    if "torchcam" in maps:
        differences["repro and torchcam"] = float((maps["torchcam"].to(reference) - reference).abs().max())
    if "pytorch-grad-cam" in maps:
        full = minmax(F.interpolate(maps[FP32["pytorch-grad-cam"]], size=size, mode="bilinear"))
        theirs = maps["pytorch-grad-cam"].to(full)
        differences["repro and pytorch-grad-cam"] = float((theirs - full).abs().max())
    return differences


def peak_memory_of(contestant: str, liveness: Liveness, size: int) -> dict[str, float]:
    """Peak resident memory of this process (MiB) before and after one explanation by one contestant."""
    torch.set_num_threads(1)
    subject = build_subject(liveness, size, "cpu")
    with torch.inference_mode():
        subject.model(subject.image)
    explain = score_cam_contestants()[contestant](subject)
    before = peak_resident_mib()
    explain()
    return {"before_mib": before, "peak_mib": peak_resident_mib()}


def peak_resident_mib() -> float:
    """Peak resident memory of this process (Linux). `ru_maxrss` would count the process that started it, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare_memory(names: list[str], liveness: Liveness, size: int) -> dict[str, dict[str, float]]:
    """Peak memory of each contestant, each in a process of its own."""
    results = {}
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--size", str(size), "--network", liveness]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[name] = json.loads(answer.strip().splitlines()[-1])
    return results


def score_cam_pairs() -> list[tuple[str, str, RatioIs, float]]:
    """Which contestants are compared, how, and what is demanded: (ours, other, ratio, bar)."""
    pairs: list[tuple[str, str, RatioIs, float]] = []
    for peer in filter(installed, PEERS):
        pairs += [(FP32[peer], peer, "peer / ours", FP32_BAR), (BF16, peer, "peer / ours", BF16_BAR)]
    floors = ((FP32["torchcam"], "bare forwards fp32"), (BF16, "bare forwards bf16"))
    return [*pairs, *((ours, floor, "ours / peer", FLOOR_BAR) for ours, floor in floors)]


def compare_timings(timings: list[Timing], device: str) -> list[Comparison]:
    """Every pair of one network and number of threads."""
    by_name = {(timing.comparison, timing.contestant): timing for timing in timings}
    pairs = [("Score-CAM", *pair) for pair in score_cam_pairs()]
    others = [name for kind, name in by_name if kind == "Grad-CAM" and name != "repro"]
    found = []
    for kind, ours, peer, ratio_is, bar in pairs:
        found.append(compare_pair(by_name[kind, ours], by_name[kind, peer], device, ratio_is, bar))
    for name in others:
        bar = NOT_SLOWER if name == "captum" else None
        found.append(compare_pair(by_name["Grad-CAM", "repro"], by_name["Grad-CAM", name], device, "peer / ours", bar))
    return found


def compare_pair(ours: Timing, peer: Timing, device: str, ratio_is: RatioIs, bar: float | None) -> Comparison:
    """One contestant beside another."""
    cpu = ours.threads == 1 and device == "cpu"
    return compared(
        f"{ours.comparison}, ResNet-18, {ours.network.replace('_', ' ')} channels, {ours.contestant}",
        ours.seconds(device),
        peer.seconds(device),
        peer.contestant,
        unit="s CPU" if cpu else "s",
        threads=ours.threads,
        ratio_is=ratio_is,
        bar=bar,
    )


def compare_peaks(memory: dict[str, dict[str, float]], liveness: Liveness) -> list[Comparison]:
    """What an explanation adds to the peak memory, beside every peer; below 1 MiB counts as 1."""
    added = {name: max(1.0, found["peak_mib"] - found["before_mib"]) for name, found in memory.items()}
    return [
        compared(
            f"Score-CAM, ResNet-18, {liveness.replace('_', ' ')} channels, memory added at the peak, {ours}",
            [added[ours]],
            [added[peer]],
            peer,
            unit="MiB",
            threads=1,
            bar=NOT_MORE,
        )
        for peer in PEERS
        if peer in added
        for ours in (FP32[peer], BF16)
    ]


def print_timings(timings: list[Timing]) -> None:
    """One line per contestant."""
    for timing in timings:
        print(
            f"{timing.comparison:9} {timing.network:9} {timing.threads} thread(s)  {timing.contestant:34}"
            f" wall {statistics.median(timing.wall):8.3f} s  cpu {statistics.median(timing.cpu):8.3f} s",
            flush=True,
        )


def compare_network(
    liveness: Liveness, size: int, device: str, threads: list[int], rounds: int
) -> tuple[list[Comparison], dict[str, object]]:
    """All comparisons on one network, and everything that was measured for them."""
    subject = build_subject(liveness, size, device)
    score_cams = {title: build(own_copy(subject)) for title, build in score_cam_contestants().items()}
    live = live_channels(subject)
    differences = map_differences(subject, score_cams)
    print(f"{liveness}: {live} of 512 channels live; largest map differences {differences}", flush=True)
    found: list[Comparison] = []
    timings: list[Timing] = []
    for count in threads:
        new = measure("Score-CAM", liveness, score_cams, count, rounds)
        new += measure("Grad-CAM", liveness, grad_cam_contestants(subject), count, 10 * rounds)
        found += compare_timings(new, device)
        timings += new
    print_timings(timings)
    memory = compare_memory(list(score_cams), liveness, size) if device == "cpu" else {}
    print(f"{liveness}: peak memory {json.dumps(memory, indent=1)}", flush=True)
    return [*found, *compare_peaks(memory, liveness)], {
        "live_channels": live,
        "map_differences": differences,
        "memory": memory,
        "timings": [asdict(timing) for timing in timings],
    }


def main(
    quick: Annotated[bool, typer.Option(help="64 x 64, one round, one thread, one network")] = False,
    size: Annotated[int, typer.Option(help="height and width of the image, pixels")] = 224,
    rounds: Annotated[int, typer.Option(help="measured rounds")] = 5,
    threads: Annotated[list[int] | None, typer.Option(help="thread counts; default 1 and 2")] = None,
    network: Annotated[Liveness | None, typer.Option(help="default: both")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    memory_of: Annotated[str, typer.Option(help="internal: measure one contestant's memory")] = "",
) -> None:
    """Run all comparisons, print and keep them."""
    if memory_of:
        print(json.dumps(peak_memory_of(memory_of, network or "few_dead", size)))
        return
    networks: list[Liveness] = [network] if network else ["few_dead", "many_dead"]
    if quick:
        size, rounds, threads, networks = 64, 1, [1], ["few_dead"]
    found: list[Comparison] = []
    details: dict[str, object] = {"size": size, "rounds": rounds}
    for name in networks:
        comparisons, details[name] = compare_network(name, size, device, threads or [1, 2], rounds)
        found += comparisons
    cuda = device == "cuda"
    record = SpeedRecord(
        name="explain-cuda" if cuda else "explain",
        environment=environment(cuda=cuda),
        comparisons=found,
        details=details,
    )
    print(f"written: {record.save(quick=quick)}")


if __name__ == "__main__":
    typer.run(main)
