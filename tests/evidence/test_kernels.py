"""Published text hangs on no linear algebra kernel: all judged intervals of the quick preset under three of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repro.project import code_root

COMMAND = """
import sys, threadpoolctl
from repro.report.readme import results_text
sys.stdout.write(results_text())
found = {pool["architecture"] for pool in threadpoolctl.threadpool_info() if pool["internal_api"] == "openblas"}
print(*sorted(found), file=sys.stderr)
"""


def _flags() -> str:
    information = Path("/proc/cpuinfo")
    return information.read_text(encoding="utf-8") if information.exists() else ""


KERNELS = [
    "Nehalem",
    *(["Haswell"] if "avx2" in _flags() else []),
    *(["SkylakeX"] if "avx512f" in _flags() else ["Zen"]),
]


def _run(kernel: str) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in ("REPRO_PROJECT", "REPRO_REPORTS")}
    environment = {
        **kept,
        "OPENBLAS_CORETYPE": kernel,
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": str(KERNELS.index(kernel)),
    }
    command = [sys.executable, "-c", COMMAND]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=code_root(), env=environment, **pipes)


@pytest.mark.skipif(len(KERNELS) < 3, reason="this processor runs fewer than three of the kernels")
def test_results_are_the_same_text_under_three_kernels():
    texts, loaded = [], []
    for kernel in KERNELS:
        out, err = (process := _run(kernel)).communicate()
        assert process.returncode == 0, err.decode()
        texts.append(out)
        loaded.append(err.decode().strip().splitlines()[-1])
    assert loaded == KERNELS, "OpenBLAS did not take the kernels asked for, so that nothing was tested"
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) > 10_000
