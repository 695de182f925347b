"""Shapes in signatures are checked while tests run; `int` passes for `float`, as PEP 484 says."""

from collections.abc import Iterator

import pytest
from jaxtyping import config, install_import_hook

pytest_plugins = ["fault_summary"]

CHECKED = ["data", "models", "losses", "explain", "metrics", "training"]
install_import_hook(
    [f"repro.{package}" for package in CHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For tests of our own message about a value of the wrong type, which the checker would refuse first."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
