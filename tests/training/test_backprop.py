"""Backprop: the gradient against a linear network, the segmentation on a square, nothing left behind."""

import torch
from comparator_helpers import one_step

from repro.training import SeenBatch
from repro.training.comparators import BackpropSettings
from repro.training.comparators.attention import saliency, segment


def test_saliency_is_the_largest_absolute_gradient_and_works_in_inference_mode() -> None:
    network = one_step([]).context.network.eval()
    images, classes = torch.randn(2, 3, 24, 24), torch.tensor([0, 2])
    moved = images.clone().requires_grad_()
    network(moved)[torch.arange(2), classes].sum().backward()
    expected = moved.grad.abs().amax(1)
    network.zero_grad()
    with torch.inference_mode():
        found = saliency(network, images, classes)
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_segment_is_the_square_around_the_salient_pixels() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32) + 0.02 * torch.randn(3, 32, 32)
    image[0, 8:20, 10:24] += 3
    salient = torch.rand(32, 32) * 0.1
    salient[8:20, 10:24] += 0.2
    salient[10:18, 12:22] += 1
    found = segment(image, salient, 0.95, 0.3)
    assert found.unique().tolist() == [0, 1]
    rows, columns = found.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 19, 10, 23)
    assert torch.equal(found, segment(image, salient, 0.95, 0.3))
    assert not segment(image, torch.ones(32, 32), 0.95, 0.3).any()


def test_maps_have_the_size_of_the_images() -> None:
    step = one_step([])
    (part,) = BackpropSettings().ingredients()
    seen = SeenBatch(step.context.network.eval(), step.batch.images, step.output, step.batch.labels)
    assert part.localise(seen).shape == (8, 24, 24)
