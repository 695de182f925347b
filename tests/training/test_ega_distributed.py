"""Two processes (gloo, CPU) train as one: global batch statistics, the same losses, the same weights."""

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
from repro.training import EGASettings, Run, train_cam, train_ega
from repro.training.comparators import ACoLSettings, DANetSettings

SETTINGS = EGASettings.paper(TINY.model_copy(update={"epochs": 1, "learning_rate": 1e-3}))
SHARDS = [4, 2]
BRANCHES = [*ACoLSettings().ingredients(), *DANetSettings(parents=((0, 1, 0),)).ingredients()]


def fresh() -> nn.Module:
    torch.manual_seed(1)
    return small_cam(3, width=4)


def normalise_shard(folder: Path, rank: int) -> None:
    norm = to_global_batch_norm(nn.Sequential(nn.BatchNorm2d(3)))[0]
    features = torch.load(folder / "features.pt", weights_only=True)
    shard = features.split(SHARDS)[rank].clone().requires_grad_()
    output = norm(shard)
    (output**3).sum().backward()
    torch.save([output.detach(), shard.grad, norm.running_mean, norm.running_var], folder / f"norm-{rank}.pt")


def work(rank: int, folder: Path, port: int) -> None:
    """One of two processes: a batch norm on uneven shards, a whole EGA training, one with classifiers run by losses."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", plugins=[LightningEnvironment()])
    fabric.launch()
    normalise_shard(folder, rank)
    run = Run(folder / f"run-{rank}", checkpoint_seconds=1e9)
    run.folder.mkdir()
    state = train_ega(fresh(), squares(), SETTINGS, run, 0, fabric)
    torch.save({"state": state, "losses": [entry["loss"] for entry in run.history]}, folder / f"{rank}.pt")
    run = Run(folder / f"branches-{rank}", checkpoint_seconds=1e9)
    run.folder.mkdir()
    state = train_cam(fresh(), squares(), SETTINGS.training, BRANCHES, run, 0, fabric=fabric)
    torch.save(state, folder / f"branches-{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_processes")
    torch.save(torch.randn(sum(SHARDS), 3, 4, 4) * 3 + 1, path / "features.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.get_context("forkserver").set_forkserver_preload(["repro.training"])  # imports once for both processes
    mp.start_processes(work, (path, port), nprocs=2, start_method="forkserver")
    return path


def test_batch_statistics_of_uneven_shards_are_global(folder: Path) -> None:
    norm, features = nn.BatchNorm2d(3), torch.load(folder / "features.pt", weights_only=True).requires_grad_()
    output = norm(features)
    (output**3).sum().backward()
    shards: list[list[Tensor]] = [torch.load(folder / f"norm-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.allclose(torch.cat([shard[0] for shard in shards]), output, atol=1e-5)
    assert torch.allclose(torch.cat([shard[1] for shard in shards]), features.grad, atol=1e-4)
    for shard in shards:
        assert torch.allclose(shard[2], norm.running_mean, atol=1e-6)
        assert torch.allclose(shard[3], norm.running_var, atol=1e-5)


def test_two_processes_follow_the_loss_curve_of_one(folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint_seconds=1e9)
    alone = train_ega(fresh(), squares(), SETTINGS, run, 0)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [entry["loss"] for entry in run.history] == pytest.approx(first["losses"], rel=1e-4)
    for name, value in alone.items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert torch.allclose(first["state"][name], value, rtol=1e-3, atol=1e-4), name


def test_classifiers_that_losses_run_learn_from_both_processes(folder: Path, tmp_path: Path) -> None:
    alone = train_cam(fresh(), squares(), SETTINGS.training, BRANCHES, Run(tmp_path, checkpoint_seconds=1e9), 0)
    first, second = (torch.load(folder / f"branches-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any(name.startswith("branches.acol_classifier") for name in alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-3, atol=1e-4), name
