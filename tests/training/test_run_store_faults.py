"""The run store under faults: full disks, damage, planted files, clocks, several processes. Nothing is lost."""

import errno
import os
import pickle
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import killable
import pytest
import torch
from filelock import FileLock
from lightning_fabric import Fabric
from test_run_store import Killed, Toy, store, toy_training
from torch import Tensor
from typer.testing import CliRunner

from repro.cli import app
from repro.files import file_hash, read_json, write_json
from repro.project import UserError
from repro.stored_runs import LOCK, collect_garbage, find_run, remove_run, stored_runs
from repro.training import Run, RunBusy, RunResult, RunStore
from repro.training.run_store import CheckpointMismatch, _apply_random, _capture_random


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Tensor]:
    tensors = store(tmp_path / "whole").run(Toy(), toy_training(Toy())).tensors
    return {name: value.clone() for name, value in tensors.items()}  # loaded tensors are mapped from the file


def cut(root: Path, die_at: int = 8) -> Path:
    """An interrupted run; returns its newest checkpoint."""
    with pytest.raises(Killed):
        store(root).run(Toy(), toy_training(Toy(), die_at))
    return root / Toy().key / f"checkpoint-train-{die_at}.pt"


def resume(root: Path, expected: dict[str, Tensor]) -> None:
    found = store(root).run(Toy(), toy_training(Toy()))
    assert not found.reused
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.items())


def rehash(checkpoint: Path) -> None:
    """Give a changed checkpoint the checksum it should have."""
    beside = checkpoint.with_suffix(".json")
    write_json(beside, read_json(beside) | {"sha256": file_hash(checkpoint)})


class Planted:
    """A pickle whose loading would create a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.faults("pickle planted as checkpoint, its checksum too", "nothing in it runs, the one before is used")
def test_a_planted_pickle_is_refused(tmp_path: Path, whole: dict[str, Tensor], capsys: pytest.CaptureFixture) -> None:
    newest = cut(tmp_path / "cut")
    torch.save({"step": 8, "state": Planted(tmp_path / "executed")}, newest)
    rehash(newest)
    resume(tmp_path / "cut", whole)
    assert not (tmp_path / "executed").exists()
    assert "checkpoint-train-8.pt was refused, nothing in it was executed" in capsys.readouterr().out
    # the plant is real: plain pickle would have run it
    pickle.loads(pickle.dumps(Planted(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


@pytest.mark.faults("truncated, emptied or overwritten checkpoint", "the one before is used, the damage is reported")
@pytest.mark.parametrize("rehashed", [False, True])
@pytest.mark.parametrize("damage", [lambda old: old[:100], lambda old: b"", lambda old: os.urandom(len(old))])
def test_damaged_checkpoints(
    damage: Callable[[bytes], bytes],
    rehashed: bool,
    tmp_path: Path,
    whole: dict[str, Tensor],
    capsys: pytest.CaptureFixture,
) -> None:
    newest = cut(tmp_path / "cut")
    newest.write_bytes(damage(newest.read_bytes()))
    if rehashed:
        rehash(newest)
    resume(tmp_path / "cut", whole)
    assert f"checkpoint-train-8.pt {'was refused' if rehashed else 'is damaged'}" in capsys.readouterr().out


@pytest.mark.faults("every checkpoint damaged", "the training starts again and ends the same")
def test_all_checkpoints_damaged(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    newest = cut(tmp_path / "cut")
    for path in newest.parent.glob("checkpoint-*"):
        path.write_bytes(b"{}")
    resume(tmp_path / "cut", whole)


@pytest.mark.faults("checkpoint of another network under the same key", "refused with what to do")
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    list(Run(tmp_path, 0).steps(3, {"network": network}))
    with pytest.raises(CheckpointMismatch, match="repro runs rm"):
        list(Run(tmp_path, 0).steps(5, {"network": torch.nn.Linear(3, 3)}))


@pytest.mark.faults("damaged result of a finished training", "noticed by its checksum, trained again, said so")
@pytest.mark.parametrize("damage", [lambda old: old[:-1], lambda old: old[:-1] + bytes([old[-1] ^ 1])])
def test_a_damaged_result_is_trained_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, whole: dict[str, Tensor], capsys: pytest.CaptureFixture
) -> None:
    tensors = tmp_path / "whole" / Toy().key / "result.safetensors"
    tensors.write_bytes(damage(tensors.read_bytes()))
    resume(tmp_path / "whole", whole)
    assert "is damaged; training it again" in capsys.readouterr().out
    assert store(tmp_path / "whole").run(Toy(), toy_training(Toy())).reused


@pytest.mark.faults("disk full while writing a checkpoint", "clear error; the run goes on from the checkpoint before")
def test_disk_full_at_a_checkpoint(tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    from repro.training import run_store as module

    calls, save = iter(range(99)), torch.save

    def fill_the_disk(content: object, path: Path) -> None:
        if next(calls) == 5:
            path.write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(content, path)

    monkeypatch.setattr(module.torch, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        store(tmp_path / "cut").run(Toy(), toy_training(Toy()))
    (run,) = stored_runs(tmp_path / "cut")
    assert run.state == "failed" and "No space left" in run.error
    assert not list(run.folder.glob(".*.tmp")), "a half-written file stayed behind"
    resume(tmp_path / "cut", whole)


@pytest.mark.faults("disk full while writing the result", "the training is not finished; the next call repeats no step")
def test_disk_full_at_the_result(tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    from repro.training import run_store as module

    def fill_the_disk(tensors: dict[str, Tensor], path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(module, "save_file", fill_the_disk)
        store(tmp_path / "cut").run(Toy(), toy_training(Toy()))
    assert stored_runs(tmp_path / "cut")[0].state == "failed"
    resume(tmp_path / "cut", whole)


@pytest.mark.faults("clock set back a year during a training", "same result; times stay positive")
def test_clock_set_back(tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    cut(tmp_path / "cut")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 365 * 86400)
    resume(tmp_path / "cut", whole)
    (run,) = stored_runs(tmp_path / "cut")
    assert run.state == "done" and run.wall_seconds > 0


@pytest.mark.faults("two processes ask for the same training at once", "one trains, the other waits and loads")
def test_two_at_once(tmp_path: Path) -> None:
    first = killable.start("classifier", tmp_path)
    second = killable.start("classifier", tmp_path)
    first.join()
    second.join()
    assert first.exitcode == second.exitcode == 0
    (run,) = stored_runs(tmp_path)
    assert run.state == "done"


@pytest.mark.faults(
    "a trainer clears leftovers while another waits for its run", "the waiting one has nothing there to lose"
)
def test_a_waiting_process_writes_nothing(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    folder = tmp_path / Toy().key
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(folder / LOCK):
            waiting = pool.submit(resume, tmp_path, whole)
            time.sleep(0.3)
            assert [path.name for path in folder.iterdir()] == [LOCK]
        waiting.result(timeout=60)


def test_states_are_derived_and_a_vanished_trainer_is_not_running(tmp_path: Path) -> None:
    process = killable.start("classifier", tmp_path)
    while not stored_runs(tmp_path) or stored_runs(tmp_path)[0].state == "pending":
        time.sleep(0.01)
    (run,) = stored_runs(tmp_path)
    assert run.state == "running"
    with pytest.raises(UserError, match="being trained"):
        remove_run(run)
    process.kill()
    process.join()
    assert stored_runs(tmp_path)[0].state == "interrupted"
    (run.folder / ".checkpoint-train-3.pt.abc.tmp").write_bytes(b"x" * 1000)
    assert collect_garbage(tmp_path) >= 1000
    assert not list(run.folder.glob(".*.tmp"))


def test_the_command_lists_shows_removes_and_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    store(tmp_path).run(Toy(), toy_training(Toy()))
    cut_key = Toy(seed=1).key
    with pytest.raises(Killed):
        store(tmp_path).run(Toy(seed=1), toy_training(Toy(seed=1), 3))
    listing = CliRunner().invoke(app, ["runs", "list"]).output
    assert "done" in listing and "failed" in listing and "2 runs" in listing
    assert '"seed": 1' in CliRunner().invoke(app, ["runs", "show", cut_key]).output
    assert "freed" in CliRunner().invoke(app, ["runs", "gc"]).output
    assert len(stored_runs()) == 2, "gc removed a run that can go on"
    assert CliRunner().invoke(app, ["runs", "rm", cut_key]).exit_code == 0
    assert [run.key for run in stored_runs()] == [Toy().key]
    with pytest.raises(UserError, match="no run 'nothing'"):
        find_run("nothing")


def test_listing_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys, repro.cli, repro.stored_runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Member(Fabric):
    """One of two processes of a training, as a thread: what the first broadcasts reaches the second."""

    def __init__(self, rank: int, line: queue.Queue[object], both_here: threading.Barrier) -> None:
        self.rank, self.line, self.both_here = rank, line, both_here

    @property
    def world_size(self) -> int:
        return 2

    @property
    def is_global_zero(self) -> bool:
        return self.rank == 0

    def broadcast(self, obj: object, src: int = 0) -> object:
        if self.rank == src:
            self.line.put(obj)
            return obj
        return self.line.get(timeout=20)

    def barrier(self, name: str | None = None) -> None:
        self.both_here.wait(20)


def both(root: Path, train: Callable[[Run], dict[str, Tensor]]) -> list[RunResult | RuntimeError]:
    """What each of two processes gets when they ask for the toy training together."""
    line: queue.Queue[object] = queue.Queue()
    team, barrier = RunStore(root, busy_seconds=0.2), threading.Barrier(2)

    def ask(rank: int) -> RunResult | RuntimeError:
        try:
            return team.run(Toy(), train, Member(rank, line, barrier))
        except RunBusy as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ask, [0, 1]))


@pytest.mark.faults("training on two devices while another process trains the same run", "both stop, with what to do")
def test_several_processes_do_not_wait_for_another(tmp_path: Path) -> None:
    (tmp_path / Toy().key).mkdir(parents=True)
    with FileLock(tmp_path / Toy().key / LOCK):
        found = both(tmp_path, lambda run: pytest.fail("trained beside another process"))
    assert [type(error) for error in found] == [RunBusy, RunBusy]
    assert "2 devices" in str(found[1]) and "start it again" in str(found[1])


@pytest.mark.faults("a run finished between the questions of two processes", "both load it, neither trains alone")
def test_several_processes_agree_on_a_finished_run(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    found = both(tmp_path / "whole", lambda run: pytest.fail("trained again"))
    assert [one.reused for one in found if isinstance(one, RunResult)] == [True, True]


def test_one_of_several_processes_writes(tmp_path: Path) -> None:
    writers: list[bool] = []
    threads = threading.Barrier(2)

    def train(run: Run) -> dict[str, Tensor]:
        writers.append(run.writes)
        threads.wait(20)
        return {"weight": torch.ones(2)}

    found = both(tmp_path, train)
    assert sorted(writers) == [False, True]
    assert all(isinstance(one, RunResult) and not one.reused for one in found)
    assert store(tmp_path).run(Toy(), train).reused


@pytest.mark.faults("damaged result whose checkpoints are still there", "goes on from the last one; repeats no step")
def test_a_damaged_result_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repro.training.run_store._remove_checkpoints", lambda folder: None)
        first = store(tmp_path).run(Toy(), toy_training(Toy()))
    (tmp_path / Toy().key / "result.safetensors").write_bytes(b"damaged")
    again = store(tmp_path).run(Toy(), toy_training(Toy(), die_at=11))
    assert not again.reused and again.history == first.history


@pytest.mark.faults("bit flipped in a finished run's summary", "noticed and trained again, or the same value")
def test_bit_flips_in_a_summary(
    tmp_path: Path, whole: dict[str, Tensor], moments: int, chance: random.Random, injected: Callable[[int], None]
) -> None:
    path = tmp_path / "whole" / Toy().key / "result.json"
    good, expected = path.read_bytes(), store(tmp_path / "whole").finished(Toy())
    assert expected is not None
    for _ in range(flips := 20 * moments):
        flipped = bytearray(good)
        flipped[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        found = store(tmp_path / "whole").finished(Toy())
        assert found is None or (found.metrics, found.history) == (expected.metrics, expected.history)
    injected(flips)


@pytest.mark.faults("folder of another run copied under a key", "not served; trained")
def test_a_copied_folder_is_not_served(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    shutil.copytree(tmp_path / "whole" / Toy().key, tmp_path / "whole" / Toy(seed=1).key)
    assert store(tmp_path / "whole").finished(Toy(seed=1)) is None
    assert not store(tmp_path / "whole").run(Toy(seed=1), toy_training(Toy(seed=1))).reused


@pytest.mark.faults("tensors of a finished run gone, its checkpoints there", "gc keeps what it can go on from")
def test_garbage_collection_keeps_checkpoints_without_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Tensor]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("repro.training.run_store._remove_checkpoints", lambda folder: None)
        store(tmp_path / "cut").run(Toy(), toy_training(Toy()))
    (run,) = stored_runs(tmp_path / "cut")
    (run.folder / "result.safetensors").unlink()
    collect_garbage(tmp_path / "cut")
    (found,) = stored_runs(tmp_path / "cut")
    assert found.checkpoints == run.checkpoints != () and found.error == "result.safetensors is missing"
    resume(tmp_path / "cut", whole)


@pytest.mark.faults("half files in the run store", "`repro runs list` names them")
def test_half_files_are_named(tmp_path: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path / "whole"))
    folder = tmp_path / "whole" / Toy().key
    for name in ("result.json", "status.json", "config.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:20])
        (folder / "checkpoint-train-x.pt").touch()
        listing = CliRunner().invoke(app, ["runs", "list"])
        assert listing.exit_code == 0 and name in listing.output, listing.output


@pytest.mark.faults("checkpoint from a machine with more GPUs", "the states of those that are here are restored")
def test_random_states_of_more_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(device))
    saved = _capture_random() | {"cuda": [torch.zeros(8), torch.zeros(8)]}
    _apply_random(saved)
    assert restored == [0]
