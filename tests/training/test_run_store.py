"""The run store: nothing is trained twice, an interrupted run ends bit-identical, damage costs one checkpoint."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from repro import execution
from repro.stored_runs import training_provenances
from repro.training import Diverged, Run, RunConfig, RunStore


class Toy(RunConfig):
    kind: ClassVar[str] = "toy"
    seed: int = 0
    steps: int = 12


class Killed(BaseException):
    """Stands for a process that vanishes."""


def toy_training(config: Toy, die_at: int | None = None):
    def train(run: Run) -> dict[str, Tensor]:
        torch.manual_seed(config.seed)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9])
        order = torch.Generator().manual_seed(config.seed)
        state = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "order": order}
        for step in run.steps(config.steps, state):
            if step == die_at:
                raise Killed
            loss = network(torch.randn(16, 4, generator=order)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            run.log(step, loss=loss.item())
        run.report(final=run.history[-1]["loss"])
        return dict(network.state_dict())

    return train


def store(path: Path) -> RunStore:
    return RunStore(path, checkpoint_seconds=0)


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path: Path) -> None:
    first = store(tmp_path).run(Toy(), toy_training(Toy()))
    second = store(tmp_path).run(Toy(), lambda run: pytest.fail("trained twice"))
    assert not first.reused and second.reused
    assert first.metrics == second.metrics and first.history == second.history
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_any_changed_field_is_another_run() -> None:
    assert len({Toy().key, Toy(seed=1).key, Toy(steps=13).key, Toy(version=2).key}) == 4


@pytest.mark.parametrize("die_at", [0, 1, 7, 11])
def test_an_interrupted_run_ends_bit_identical(tmp_path: Path, die_at: int) -> None:
    whole = store(tmp_path / "whole").run(Toy(), toy_training(Toy()))
    with pytest.raises(Killed):
        store(tmp_path / "cut").run(Toy(), toy_training(Toy(), die_at))
    resumed = store(tmp_path / "cut").run(Toy(), toy_training(Toy()))
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


@pytest.mark.faults("NaN loss", "the run stops and says at which step")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="loss became nan at step 3"):
        Run(tmp_path, 0).log(3, loss=float("nan"))


def test_failed_runs_say_so(tmp_path: Path) -> None:
    def broken(run: Run) -> dict[str, Tensor]:
        raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        store(tmp_path).run(Toy(), broken)
    assert '"state": "failed"' in (tmp_path / Toy().key / "status.json").read_text()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_kernels_are_the_stores_own(tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []

    def train(run: Run) -> dict[str, Tensor]:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        generator = torch.Generator().manual_seed(0)
        images, filters = (torch.randn(8, 16, 33, 33, generator=generator) for _ in range(2))
        return {"sum": torch.nn.functional.conv2d(images, filters[:, :, :9, :9]).sum()}

    try:
        torch.set_num_threads(threads)
        found = store(tmp_path).run(Toy(), train)
        assert seen == [(1, True)] and torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(1)
        assert torch.equal(found.tensors["sum"], train(Run(tmp_path, 0))["sum"])
    finally:
        torch.set_num_threads(before)
    (made,) = training_provenances([Toy().key, Toy(seed=1).key], tmp_path).values()
    assert made.threads == 1 and made.torch == torch.__version__ and made.device in made.device_name.lower()


CODE = """
import torch
from repro.training.run_store import Run

def training(config, die_at=None):
    def train(run: Run):
        # a comment: {comment}
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout({dropout}), torch.nn.Linear(8, 1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for step in run.steps(config.steps, {{"network": network, "optimizer": optimizer}}):
            if step == die_at:
                raise KeyboardInterrupt
            optimizer.zero_grad()
            network(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
        return dict(network.state_dict())
    return train
"""


def edited(folder: Path, dropout: float, comment: str = "") -> Callable[..., Callable[[Run], dict[str, Tensor]]]:
    """The training of a module that was just written with that dropout, as a process started now would see it."""
    path = folder / "edited_training.py"
    path.write_text(CODE.format(dropout=dropout, comment=comment))
    spec = importlib.util.spec_from_file_location("edited_training", path)
    assert spec and spec.loader
    sys.modules["edited_training"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    execution._training_code.cache_clear()
    return module.training


@pytest.mark.faults("dropout edited between kill and resume", "said so and trained again: no mixture is stored")
def test_an_edit_between_kill_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    half = edited(tmp_path, 0.5)
    for name in ("restarted", "continued", "commented"):
        with pytest.raises(KeyboardInterrupt):
            store(tmp_path / name).run(Toy(), half(Toy(), die_at=6))
    whole = store(tmp_path / "half").run(Toy(), half(Toy()))
    commented = store(tmp_path / "commented").run(Toy(), edited(tmp_path, 0.5, "another one")(Toy()))
    assert "has changed" not in capsys.readouterr().out
    assert all(torch.equal(commented.tensors[name], whole.tensors[name]) for name in whole.tensors)

    tenth = edited(tmp_path, 0.1)
    whole = store(tmp_path / "tenth").run(Toy(), tenth(Toy()))
    restarted = store(tmp_path / "restarted").run(Toy(), tenth(Toy()))
    assert "has changed since (code: " in capsys.readouterr().out
    assert all(torch.equal(restarted.tensors[name], whole.tensors[name]) for name in whole.tensors)
    continued = RunStore(tmp_path / "continued", 0, continue_changed=True).run(Toy(), tenth(Toy()))
    assert not all(torch.equal(continued.tensors[name], whole.tensors[name]) for name in whole.tensors)
    changes = {
        name: training_provenances([Toy().key], tmp_path / name)[Toy().key].changes
        for name in ("restarted", "continued")
    }
    assert changes["restarted"] == [] and changes["continued"][0].startswith("code: ")
    sys.dont_write_bytecode = before
