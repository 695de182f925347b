"""The half hour on a GPU, at toy size on the CPU: steps end, resume, are cut off and compare."""

import importlib.util
import sys

import pytest
import typer

from repro.files import read_json
from repro.project import code_root


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", code_root() / "benchmarks/gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    return module


def run(gpu, **options) -> int:
    with pytest.raises(typer.Exit) as ended:
        gpu.main(**{"minutes": 5, "toy": True, "only": None} | options)
    return ended.value.exit_code


def test_smoke_on_both_devices_is_compared_and_not_repeated(gpu, tmp_path, capsys):
    assert run(gpu, only=["smoke-cuda", "smoke-cpu", "cuda-against-cpu"]) == 0
    found = read_json(tmp_path / "cuda-against-cpu.json")["found"]
    assert found == {"dfg/table1_datasets": "equal", "dfg/appendix_architectures": "equal"}
    assert run(gpu, only=["smoke-cuda"]) == 0
    assert "smoke-cuda: done before" in capsys.readouterr().out


def test_a_step_is_cut_off_by_the_clock_and_stays_to_be_done(gpu, tmp_path):
    slow = gpu.Step("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 0)
    assert slow.run(0.5) == "cut off"
    assert not slow.done


def test_a_failure_is_the_exit_status_and_a_step_that_cannot_begin_is_named(gpu, monkeypatch, capsys):
    bad = gpu.Step("bad", [sys.executable, "-c", "raise SystemExit(3)"], 0)
    long = gpu.Step("long", [sys.executable, "-c", ""], 60)
    monkeypatch.setattr(gpu, "steps", lambda toy: [bad, long])
    assert run(gpu) == 1
    assert "long: not started" in capsys.readouterr().out


def test_records_that_are_missing_differ(gpu):
    assert all(text.startswith("differs") for text in gpu.compare(["dfg/table1_datasets"]).values())
