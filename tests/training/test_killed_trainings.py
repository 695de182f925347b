"""A training killed at any moment ends bit-identical to one that was left alone."""

import random
from collections.abc import Callable
from pathlib import Path

import killable
import pytest
from safetensors.torch import load_file

from repro.files import read_json
from repro.stored_runs import collect_garbage, stored_runs


def outcome(root: Path) -> tuple[bytes, object, object]:
    """The bytes of the final weights, the metrics and the loss curve of the only run below `root`."""
    (run,) = stored_runs(root)
    assert run.state == "done"
    summary = read_json(run.folder / "result.json")
    assert load_file(run.folder / "result.safetensors")
    return (run.folder / "result.safetensors").read_bytes(), summary["metrics"], summary["history"]


@pytest.mark.faults("kill -9 of a training: {id}", "final weights and loss curve are bit-identical")
@pytest.mark.parametrize("name", killable.TRAININGS)
def test_killed_at_random_moments(
    name: str, tmp_path: Path, moments: int, chance: random.Random, injected: Callable[[int], None]
) -> None:
    killable.finish(name, tmp_path / "warm")
    seconds = killable.finish(name, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    assert outcome(tmp_path / "warm") == expected, "two uninterrupted trainings differ: nothing could be concluded"
    kills, cut = 0, tmp_path / "cut-0"
    while kills < moments:
        if killable.kill_at_random(name, cut, seconds, chance):
            kills += 1
            assert not stored_runs(cut) or stored_runs(cut)[0].state != "running"
        else:
            assert outcome(cut) == expected
            cut = tmp_path / f"cut-{kills}"
    killable.finish(name, cut)
    assert outcome(cut) == expected
    collect_garbage(cut)
    assert sorted(path.name for path in stored_runs(cut)[0].folder.iterdir() if path.name != "lock") == [
        "config.json", "result.json", "result.safetensors", "status.json",
    ]  # fmt: skip
    injected(kills)
