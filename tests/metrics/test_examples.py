"""Every public metric, loss and explainer shows an example, and all of them run."""

import doctest
import importlib
import inspect

import numpy as np
import pytest
import torch
from torch import nn

PACKAGES = ("repro.metrics", "repro.losses")
# Types, constants and what only carries fields: their users show them.
FIELDS_ONLY = {"LocalisationResult", "ExplanationMaps", "ExplanationScores", "AreaMatched", "InsertionDeletionCurves"}


def public_objects() -> list[tuple[str, object]]:
    found = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.append((name, value))
    return found


@pytest.mark.parametrize(("name", "value"), public_objects())
def test_examples_run(name: str, value: object) -> None:
    names = {**vars(importlib.import_module("repro.metrics")), "torch": torch, "np": np, "nn": nn}
    failures = []
    for example in doctest.DocTestFinder(recurse=False).find(value, name, globs=names):
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(example, out=failures.append)
    assert not failures, "".join(failures)
