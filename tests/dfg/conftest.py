"""Tiny tasks for the training tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from repro.models import SplitClassifier, lenet5
from repro.training import Run
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.sampling import ReplicaTasks, ResidentData


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[str], Run]:
    """A training run in its own folder."""

    def make(name: str) -> Run:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Run(folder, checkpoint_seconds=1e9)

    return make


@pytest.fixture(scope="session")
def resident() -> ResidentData:
    """Sixty noisy images of ten classes: each class has its own bright row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 10
    images = torch.randint(0, 60, (60, 1, 32, 32), dtype=torch.uint8, generator=generator)
    for i, label in enumerate(labels):
        images[i, :, 3 * label : 3 * label + 3] += 180
    return ResidentData(images, labels)


@pytest.fixture(scope="session")
def make_tasks(resident: ResidentData) -> Callable[[list[int]], ReplicaTasks]:
    """Tasks whose replica with seed s sees every image but those congruent s modulo 7."""

    def make(seeds: list[int]) -> ReplicaTasks:
        everything = torch.arange(60)
        subsets = [everything[everything % 7 != seed % 7] for seed in seeds]
        held_out = [everything[everything % 7 == seed % 7] for seed in seeds]
        return ReplicaTasks(resident, resident, 10, subsets, held_out, seeds)

    return make


@pytest.fixture(scope="session")
def source() -> SplitClassifier:
    """A random source network in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return lenet5().double()


@pytest.fixture(scope="session")
def short() -> DFGSettings:
    """Twenty iterations in five cycles that contain every update of Algorithm 1."""
    return DFGSettings(
        iterations=20,
        batch=4,
        critic_updates=2,
        merged_every=4,
        filter_weights_every=8,
        network_lr=1e-3,
        evaluations=2,
    )


@pytest.fixture(scope="session")
def paper() -> DFGReadings:
    """The paper's readings."""
    return DFGReadings.paper()
