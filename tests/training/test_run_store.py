"""The run store: nothing is trained twice, an interrupted run ends bit-identical, damage costs one checkpoint."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

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
