"""One step, and a short training, of a method on the small squares."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from cam_helpers import TINY, network, squares
from torch import Tensor

from repro.models import CAMOutput
from repro.studies.cam_methods import MethodSettings
from repro.training import Ingredient, Run, StepContext, evaluate_localisation, prepare_network, train_cam
from repro.training.batches import Batch, Batches
from repro.training.cam import transformed


class Step(NamedTuple):
    """A forward pass of one training batch."""

    context: StepContext
    batch: Batch
    output: CAMOutput


class Trained(NamedTuple):
    """A short training and its maps; `again` evaluates once more."""

    history: list[dict[str, float]]
    maps: Tensor
    again: Callable[[], Tensor]


def one_step(parts: Sequence[Ingredient]) -> Step:
    """Eight images through a fresh network with the layers of `parts`, in training mode."""
    wrapped = prepare_network(network(), parts).train()
    batches = Batches(squares(), TINY, 0, torch.device("cpu"))
    context = StepContext(wrapped, TINY.normalisation, batches.random(0))
    batch = transformed(batches.at(0, context.random), parts, context)
    return Step(context, batch, wrapped.cam(batch.images))


def trained(method: MethodSettings, folder: Path, before: Sequence[Ingredient] = ()) -> Trained:
    """Two epochs with `before` and the method's own ingredients."""
    folder.mkdir()
    run, parts, started = Run(folder, 1e9), [*method.ingredients(), *before], network()
    state = train_cam(started, squares(), TINY, parts, run, 0, method.reduction)
    loaded = prepare_network(network(seed=5), parts)
    loaded.load_state_dict(state)

    def evaluate() -> Tensor:
        return evaluate_localisation(loaded, squares(), TINY, parts).maps

    return Trained(run.history, evaluate(), evaluate)
