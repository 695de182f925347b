"""`pytest --nbval notebooks` compares the cells tagged `check`; all other cells are stripped and only have to run."""

import pytest

collect_ignore = [
    "own"
]  # minutes of masked passes on real photographs; `tests/explain/test_own.py` runs its cells small


def pytest_configure(config: pytest.Config) -> None:
    if config.option.nbval:
        config.option.nbval_lax = True
