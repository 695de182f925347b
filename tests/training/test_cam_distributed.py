"""Two processes (gloo, CPU) train as one, by every method, also where the batch cannot be halved."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from cam_helpers import TINY, squares
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from repro.models import small_cam, to_global_batch_norm
from repro.training import Run, train_ega
from repro.training.cam import Method
from repro.training.comparators import METHODS

# Three steps of 7 images: shares of 3 and 4.
TRAINING = TINY.model_copy(update={"epochs": 1, "batch_size": 7, "learning_rate": 1e-3, "decay_epochs": ()})
SHARDS = [4, 2]
MEANS = (0.0, 1.0, 100.0, 1000.0)


def settings(id: str) -> Method:
    return METHODS[id](training=TRAINING).for_classes(["Coat", "Shirt", "Bag"])


def fresh() -> nn.Module:
    torch.manual_seed(1)
    return small_cam(3, width=4)


def trained(id: str, folder: Path, fabric: Fabric | None = None) -> dict[str, Tensor]:
    folder.mkdir()
    run = Run(folder, checkpoint_seconds=1e9)
    method = settings(id)
    state = train_ega(fresh(), squares(21), method, run, 0, fabric)
    return state | {"losses": torch.tensor([entry["loss"] for entry in run.history])}


def normalise(norm: nn.Module, features: Tensor) -> list[Tensor]:
    features = features.clone().requires_grad_()
    output = norm(features)
    (output**3 + output * torch.linspace(0, 1, output.shape[-1])).sum().backward()
    return [output.detach(), features.grad, norm.weight.grad, norm.running_mean, norm.running_var]


def work(rank: int, folder: Path, port: int) -> None:
    """One of two processes: batch norms on uneven shards, and a short training by every method."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    fabric.launch()
    for mean in MEANS:
        norm = to_global_batch_norm(nn.Sequential(nn.BatchNorm2d(3)))[0]
        shard = torch.load(folder / f"features-{mean}.pt", weights_only=True).split(SHARDS)[rank]
        torch.save(normalise(norm, shard), folder / f"norm-{mean}-{rank}.pt")
    for id in METHODS:
        torch.save(trained(id, folder / f"{id}-{rank}", fabric), folder / f"{id}-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_processes")
    for mean in MEANS:
        torch.save(torch.randn(sum(SHARDS), 3, 4, 4) * 0.5 + mean, path / f"features-{mean}.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.get_context("forkserver").set_forkserver_preload(["repro.training.comparators"])  # imports once for both
    mp.start_processes(work, (path, port), nprocs=2, start_method="forkserver")
    return path


@pytest.mark.parametrize("mean", MEANS)
def test_batch_statistics_of_uneven_shards_are_global_at_any_mean(folder: Path, mean: float) -> None:
    features = torch.load(folder / f"features-{mean}.pt", weights_only=True)
    expected = normalise(nn.BatchNorm2d(3).double(), features.double())
    shards: list[list[Tensor]] = [torch.load(folder / f"norm-{mean}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    # float32 has seven digits: of values around a mean that many are left behind the deviation
    tolerance = 1e-5 + 4e-7 * mean
    for position, name in enumerate(("output", "gradient")):
        found = torch.cat([shard[position] for shard in shards]).double()
        assert torch.allclose(found, expected[position], atol=20 * tolerance, rtol=0), name
    assert torch.allclose(shards[0][2] + shards[1][2], expected[2].float(), atol=500 * tolerance)
    for shard in shards:
        assert torch.allclose(shard[3].double(), expected[3], rtol=1e-6, atol=1e-6)
        assert torch.allclose(shard[4].double(), expected[4], rtol=1e-4)


@pytest.mark.parametrize("id", METHODS)
def test_two_processes_train_as_one(id: str, folder: Path, tmp_path: Path) -> None:
    alone = trained(id, tmp_path / "alone")
    first, second = (torch.load(folder / f"{id}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert alone.keys() == first.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-3, atol=2e-4), name
