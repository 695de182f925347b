"""What numbers depend on beside parameters and data: the code reached, the device, threads and kernels."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from repro.project import code_root

THREADS = 1
"""Of every training and stored evaluation, whatever the environment says: sums of floats depend on their number."""


@contextmanager
def reproducible() -> Iterator[None]:
    """One thread and deterministic kernels inside; the caller's settings are back afterwards.

    On CUDA an operation that has no deterministic kernel warns instead of failing.
    """
    import torch

    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with threadpool_limits(THREADS):
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
            torch.set_num_threads(threads)


def use_one_thread() -> None:
    """Fix the threads of this whole process, a notebook's say, where no caller's setting has to be kept."""
    import torch

    threadpool_limits(THREADS)
    torch.set_num_threads(THREADS)


def device_name() -> str:
    """The accelerator's name, or the processor model with its core count."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {processor_name()}"


@cache
def processor_name() -> str:
    """Model of the processor with the number of cores this process may use, e.g. "AMD EPYC, 2 cores"."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def training_code(train: Callable[..., Any]) -> str:
    """Hash of the code a training function reaches: its module, and every `repro` module that one imports.

    How results are judged and shown (`repro.evidence`, `repro.report`) is left out. A function typed into a notebook
    has no module; its compiled code stands for it.
    """
    function = getattr(train, "func", train)  # a partial
    module = sys.modules.get(function.__module__)
    path = getattr(module, "__file__", None)
    if path is None:
        code = getattr(function, "__code__", None)
        return hashlib.sha256(repr((code.co_code, code.co_consts, code.co_names)).encode() if code else b"").hexdigest()
    return _training_code(Path(path))


@cache  # what a process has imported does not change under it
def _training_code(path: Path) -> str:
    return source_hash(path.read_text(encoding="utf-8"), without=("repro.report", "repro.evidence"))


def source_hash(source: str, without: Sequence[str] = ()) -> str:
    """Hash of Python source and of every `repro` module it reaches by its imports, directly or through others.

    Taken over syntax trees without docstrings, so that comments, layout and documentation do not count. A name that a
    package re-exports is followed to the module that defines it; the package's other modules are not reached by it.

    Args:
        source: text of a module, or of a notebook's code cells.
        without: packages that are not followed.
    """
    start = _parsed(source)
    reached: dict[Path, str] = {}
    waiting = list(start.imports)
    while waiting:
        name = waiting.pop()
        path = None if any(f"{name}.".startswith(f"{package}.") for package in without) else _defining_file(name)
        if path is not None and path not in reached:
            module = _module(path)
            reached[path] = module.digest
            waiting += module.imports
    lines = [f"{path.relative_to(code_root()).as_posix()} {digest}" for path, digest in reached.items()]
    return hashlib.sha256("\n".join([start.digest, *sorted(lines)]).encode()).hexdigest()


@dataclass(frozen=True)
class _Module:
    digest: str
    imports: Mapping[str, str]
    """Dotted name in `repro` → the name it is bound to here."""


def _defining_file(name: str) -> Path | None:
    """File of the module that `name` (a module, or something imported from one) is defined in; None outside."""
    base = code_root() / Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    package, _, last = name.rpartition(".")
    holder = _defining_file(package) if package else None
    if holder is None or holder.name != "__init__.py":
        return holder
    exported = [origin for origin, bound in _module(holder).imports.items() if bound == last]
    return _defining_file(exported[0]) if exported else holder


def _module(path: Path) -> _Module:
    state = path.stat()
    return _read_module(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def _read_module(path: Path, modified: int, size: int) -> _Module:
    return _parsed(path.read_text(encoding="utf-8"))


def _parsed(source: str) -> _Module:
    tree = ast.parse(source)
    imports: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name: alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = node.module if alias.name == "*" else f"{node.module}.{alias.name}"
                imports[whole] = alias.asname or alias.name
    own = {name: bound for name, bound in imports.items() if name.split(".")[0] == "repro"}
    return _Module(hashlib.sha256(repr(_meaning(tree)).encode()).hexdigest(), own)


def _meaning(node: object) -> object:
    """The tree as nested lists, without strings that stand alone; fields that are empty are left out, since Python's
    versions differ in which they have."""
    if isinstance(node, ast.AST):
        fields = [(name, _meaning(value)) for name, value in ast.iter_fields(node)]
        return type(node).__name__, [(name, value) for name, value in fields if value not in (None, [])]
    if isinstance(node, list):
        return [_meaning(item) for item in node if not _is_text(item)]
    return repr(node) if node is not None else None


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
