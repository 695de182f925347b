"""Every command in the README's code blocks: `pytest -m readme`.

A fresh clone of the checkout's last commit gets a `.venv` whose programs are those of the environment the tests run in,
because installing torch anew would test the package index and not this project; `make` sees a finished `.venv` and does
not rebuild it. `HOW` says of each command whether it is executed as printed, narrowed, or rehearsed: run through the
real command line, with its presets and parameters validated, as far as the decision what to run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from repro.project import code_root

README = (code_root() / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LINES = [line.partition("#")[0].strip() for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [line for line in LINES if line]
SMALL_TABLE = "scorecampp/fig5_activation_maps"
HOW = {
    "make report": "narrowed: IDS=one table instead of all (CI runs all)",
    "make test": "rehearsed: make -n (CI runs it)",
    "repro run scorecampp/table3_imagenet_resnet18 --preset quick": "rehearsed: needs data",
    "repro run scorecampp/table6_gating --set images=100": "executed",
    "repro run ega --preset quick --jobs 2": "rehearsed: needs data",
    "repro run dfg/table2_accuracy --preset paper": "rehearsed: needs data and a GPU",
    "repro report --preset quick": "executed: and changes neither README nor RESULTS.md",
    "repro verdicts --preset quick --paper scorecampp": "executed",
    "repro train ega table1_cub --preset paper --devices 2": "rehearsed: needs data and devices",
    "repro plan scorecampp --preset smoke": "executed",
    "repro runs list": "executed",
    "repro run ega --preset paper --executor slurm --dry-run": "rehearsed: needs the extra cluster",
    "repro explain --images FOLDER": "executed on one photograph",
    "repro data list": "executed",
    "repro data prepare fashion_mnist --from FOLDER": "executed on an empty folder: names the missing archives",
    "repro data check fashion_mnist": "executed without data: says what is missing",
}
EXPECTED_STATUS = {
    "repro data prepare fashion_mnist --from FOLDER": 2,
    "repro data check fashion_mnist": 1,
}
EXPECTED_TEXT = {
    "make report": "1 of 1 records valid",
    "make test": "mypy",
    "repro run scorecampp/table6_gating --set images=100": "1 of 1 records valid",
    "repro run ega --preset quick --jobs 2": "would run ega/table1_cub quick",
    "repro run dfg/table2_accuracy --preset paper": "would run dfg/table2_accuracy paper",
    "repro train ega table1_cub --preset paper --devices 2": "would train ega/table1_cub paper",
    "repro verdicts --preset quick --paper scorecampp": "scorecampp.c",
    "repro plan scorecampp --preset smoke": "Predicted cost",
    "repro explain --images FOLDER": "written: ",
    "repro data list": "fashion_mnist",
    "repro data prepare fashion_mnist --from FOLDER": "train-images-idx3-ubyte.gz is missing",
    "repro data check fashion_mnist": "fashion_mnist: not usable",
}


def test_every_command_has_a_check_and_every_check_a_command() -> None:
    assert sorted(set(COMMANDS)) == sorted(HOW)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone whose `.venv` holds the programs of this environment."""
    folder = tmp_path_factory.mktemp("readme") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--local", str(code_root()), str(folder)], check=True)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, command in (("python", ""), ("repro", "-m repro.cli "), ("ruff", "-m ruff "), ("mypy", "-m mypy ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        (programs / name).chmod(0o755)
    for stamp in ("ready", "bench"):
        (folder / ".venv" / stamp).touch()
    return folder


def execute(clone: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the clone, with the clone's package and without this checkout's data, reports or runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REPRO_", "PYTEST_"))}
    path = os.pathsep.join([str(clone / ".venv" / "bin"), kept["PATH"]])
    environment = kept | {"PATH": path, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=1800)


def as_run(command: str, clone: Path) -> list[str]:
    """The command that `HOW` announces for one of the README."""
    words = command.split()
    if command == "make test":
        return ["make", "-n", "test"]
    if command == "make report":
        return [*words, f"IDS={SMALL_TABLE}"]
    if HOW[command].startswith("rehearsed"):
        return [sys.executable, str(clone / "tests" / "readme" / "rehearsal.py"), *words[1:]]
    if command.startswith("repro explain"):
        (clone.parent / "pictures").mkdir(exist_ok=True)
        shutil.copy(clone / "repro/data/photos/chelsea.jpg", clone.parent / "pictures")
        return [str(clone.parent / "pictures") if word == "FOLDER" else word for word in words]
    if "FOLDER" in words:
        (clone.parent / "archives").mkdir(exist_ok=True)
        return [str(clone.parent / "archives") if word == "FOLDER" else word for word in words]
    return words


@pytest.mark.readme
@pytest.mark.parametrize("command", HOW)
def test_a_command_of_the_readme(clone: Path, command: str) -> None:
    found = execute(clone, as_run(command, clone))
    text = found.stdout + found.stderr
    assert found.returncode == EXPECTED_STATUS.get(command, 0), text[-3000:]
    assert EXPECTED_TEXT.get(command, "") in text, text[-3000:]
    changed = execute(clone, ["git", "diff", "--stat", "README.md", "RESULTS.md"]).stdout
    assert not changed, "today's code makes other tables of the same records; run `repro report --preset quick`"


@pytest.mark.readme
def test_make_sets_up_the_environment_from_the_lock(clone: Path) -> None:
    (clone / ".venv" / "ready").unlink()
    text = execute(clone, ["make", "-n", "report"]).stdout
    (clone / ".venv" / "ready").touch()
    assert "--require-hashes -r requirements.lock" in text
    assert "--no-deps -e ." in text


@pytest.mark.readme
def test_the_library_example_runs() -> None:
    """The Python block as printed, with the names it leaves to the reader: a network, images, maps and boxes."""
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    torch.manual_seed(0)
    names = {
        "model": torchvision.models.resnet18(weights=None).eval(),
        "images": torch.rand(2, 3, 64, 64),
        "classes": torch.tensor([3, 5]),
        "cams": torch.rand(2, 14, 14),
        "boxes": [torch.tensor([[10, 10, 50, 60]]).numpy()] * 2,
    }
    exec(compile(code, "README.md", "exec"), names)
    assert names["maps"].shape == (2, 1, 64, 64)
    assert 0 <= names["metric"].compute().value <= 100
