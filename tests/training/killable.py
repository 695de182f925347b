"""Tiny trainings that a test starts in a process of its own, kills at a random moment and starts again."""

import multiprocessing as mp
import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ClassVar

import torch
from cam_helpers import TINY, network, squares

from repro.models import lenet5, load_classifier
from repro.training import (
    ClassifierRun,
    ClassifierSettings,
    EGASettings,
    RunConfig,
    RunResult,
    RunStore,
    train_classifier,
    train_ega,
)
from repro.training.dfg import train_dfg
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.sampling import ReplicaTasks, ResidentData

Training = Callable[[RunStore], RunResult]
BEGUN = "begun"


class EGARun(RunConfig):
    kind: ClassVar[str] = "ega"
    settings: EGASettings


def classifier(store: RunStore) -> RunResult:
    """Adam, cosine schedule, mirrored and shifted images."""
    settings = ClassifierSettings(schedule="cosine", epochs=12, batch_size=16, flip=True, shift=2)
    start = load_classifier("small_cnn", num_classes=3, input_size=32, seed=0)
    config = ClassifierRun(architecture="small_cnn", weights="", data="squares", settings=settings)
    return store.run(config, lambda run: train_classifier(run, start, squares(), settings))


def ega(store: RunStore) -> RunResult:
    """Dual batch norm, attack, entropy and dropout."""
    settings = EGASettings(training=TINY.model_copy(update={"epochs": 5, "decay_epochs": (3,)}))
    config = EGARun(settings=settings)
    return store.run(config, lambda run: train_ega(network(), squares(), settings, run, seed=3))


class DFGRun(RunConfig):
    kind: ClassVar[str] = "dfg"
    settings: DFGSettings


def dfg(store: RunStore) -> RunResult:
    """Four networks, two optimisers each side, filter weights, two replicas."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (60, 1, 32, 32), dtype=torch.uint8, generator=generator)
    data = ResidentData(images, torch.arange(60) % 10)
    subset = torch.arange(50)
    tasks = ReplicaTasks(data, data, 10, [subset, subset], [torch.arange(50, 60)] * 2, [0, 1])
    settings = DFGSettings(
        iterations=32, batch=4, critic_updates=2, merged_every=4, filter_weights_every=8, network_lr=1e-3, evaluations=2
    )
    torch.manual_seed(5)
    source = lenet5()
    config = DFGRun(settings=settings)
    return store.run(config, lambda run: train_dfg(source, tasks, settings, DFGReadings.paper(), run))


TRAININGS: dict[str, Training] = {"classifier": classifier, "ega": ega, "dfg": dfg}


def work(name: str, root: Path) -> None:
    """What the child process does; a checkpoint after every step makes its writing the likeliest place to die."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    root.mkdir(exist_ok=True)
    (root / BEGUN).write_text("")
    TRAININGS[name](RunStore(root, checkpoint_seconds=0))


def start(name: str, root: Path) -> BaseProcess:
    """Start a training and return once it has begun."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["repro.training"])  # one import of torch for all children
    (root / BEGUN).unlink(missing_ok=True)
    process = context.Process(target=work, args=(name, root), daemon=True)
    process.start()
    while not (root / BEGUN).exists() and process.is_alive():
        time.sleep(0.002)
    return process


def finish(name: str, root: Path) -> float:
    """Train without interruption; returns the seconds it took."""
    process = start(name, root)
    clock = time.monotonic()
    process.join()
    assert process.exitcode == 0, f"{name} ended with {process.exitcode}"
    return time.monotonic() - clock


def kill_at_random(name: str, root: Path, seconds: float, chance: random.Random) -> bool:
    """Kill a training at a moment of its `seconds`; False where it had already ended."""
    process = start(name, root)
    time.sleep(chance.uniform(0, seconds))
    os.kill(process.pid or 0, 9) if process.is_alive() else None
    process.join()
    return process.exitcode == -9
