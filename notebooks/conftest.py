"""`pytest --nbval notebooks` compares the cells tagged `check`; all other cells are stripped and only have to run."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.option.nbval:
        config.option.nbval_lax = True
