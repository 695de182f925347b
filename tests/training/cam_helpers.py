"""Small data, networks and steps for the tests of the CAM loop."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from repro.data.images import ImageSet
from repro.models import CAMNetwork, CAMOutput, small_cam
from repro.training import Ingredient, StepContext, TrainingSettings, prepare_network
from repro.training.batches import Batch, Batches
from repro.training.cam import transformed

TINY = TrainingSettings(
    learning_rate=2e-3, batch_size=8, epochs=2, decay_epochs=(1,), resize=None, crop=24, log_every=1
)


def squares(count: int = 32) -> ImageSet:
    """Noise images of three classes; class k has a bright square in channel k."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    for index, label in enumerate(labels.tolist()):
        images[index, label, 8:20, 8:20] = 230
    ids = [f"image {index}" for index in range(count)]
    return ImageSet("squares", "train", images, labels, ["red", "green", "blue"], ids)


def network(seed: int = 1) -> CAMNetwork:
    """A CAM network with dropout in its neck, so that the global random state matters."""
    torch.manual_seed(seed)
    built = small_cam(3, width=4)
    built.neck.append(torch.nn.Dropout(0.2))
    return built


class Step(NamedTuple):
    """A forward pass of one training batch."""

    context: StepContext
    batch: Batch
    output: CAMOutput


def one_step(parts: Sequence[Ingredient]) -> Step:
    """Eight images through a fresh network with the layers of `parts`, in training mode.

    Of the step's random numbers those of crops and flips are drawn when it starts.
    """
    wrapped = prepare_network(network(), parts).train()
    batches = Batches(squares(), TINY, 0, torch.device("cpu"))
    context = StepContext(wrapped, TINY.normalisation, batches.random(0))
    batch = transformed(batches.at(0, context.random), parts, context)
    return Step(context, batch, wrapped.cam(batch.images))
