"""ACoL: erased features by hand, gradients of both classifiers, the maximum of two maps."""

from pathlib import Path

import pytest
import torch
from comparator_helpers import one_step, trained

from repro.models import CAMOutput, small_cam
from repro.training import EGASettings, SeenBatch, prepare_network
from repro.training.comparators import ACoLSettings, ComplementaryClassifier
from repro.training.comparators.erasing import erase


def test_features_are_zero_where_the_scaled_map_reaches_the_threshold() -> None:
    maps = torch.tensor([[[-1.0, 1.0], [3.0, 9.0]]])  # scaled: 0, 0.2, 0.4, 1
    features = torch.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    assert erase(features, maps, 0.4).tolist() == [[[[1, 2], [0, 0]], [[5, 6], [0, 0]]]]
    assert erase(features, torch.ones(1, 2, 2), 0.4).tolist() == features.tolist()  # a constant map finds nothing


def test_the_mask_carries_no_gradient() -> None:
    maps = torch.rand(2, 3, 3, requires_grad=True)
    features = torch.rand(2, 4, 3, 3, requires_grad=True)
    erase(features, maps, 0.5).sum().backward()
    assert maps.grad is None
    assert set(features.grad.unique().tolist()) == {0.0, 1.0}


def test_classifier_b_starts_as_a_and_its_loss_reaches_it_and_the_backbone_only() -> None:
    part = ComplementaryClassifier(0.6)
    step = one_step([part])
    terms = part.losses(step.output, step.batch, step.context)
    terms["complement"].backward()
    network = step.context.network
    assert all(parameter.grad is None for parameter in (*network.neck.parameters(), *network.classifier.parameters()))
    learning = [*network.backbone.parameters(), *network.branches.parameters()]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)
    assert {id(parameter) for parameter in network.branches.parameters()} <= {
        id(parameter) for module in network.head_modules() for parameter in module.parameters()
    }
    whole = ComplementaryClassifier(0.9999).complement(network, step.output, torch.zeros(8, dtype=torch.int64))
    assert torch.equal(network.branches["acol_classifier"].weight, network.classifier.weight)
    assert not torch.equal(whole.maps, step.output.maps)  # the peak itself is erased


def test_localisation_takes_the_maximum_of_scaled_maps() -> None:
    part = ComplementaryClassifier(0.5)
    network = prepare_network(small_cam(2, width=4, head="cam"), [part]).eval()
    neck, classifier = torch.nn.Identity(), torch.nn.Conv2d(1, 2, 1, bias=False)
    torch.nn.init.ones_(classifier.weight)
    network.branches["acol_neck"], network.branches["acol_classifier"] = neck, classifier
    first = torch.tensor([[0.0, 2.0], [4.0, 8.0]])
    features = torch.tensor([[[[6.0, 3.0], [9.0, 5.0]]]])
    output = CAMOutput(torch.zeros(1, 2), first.expand(1, 2, 2, 2), {"acol_features": features})
    found = part.localise(SeenBatch(network, torch.zeros(1, 3, 16, 16), output, torch.tensor([1])))
    # A scaled: 0, .25, .5, 1; erased features 6, 3, 0, 0, scaled 1, .5, 0, 0
    assert found.tolist() == [[[1.0, 0.5], [0.5, 1.0]]]


def test_it_trains_alone_and_with_ega_and_localises(tmp_path: Path) -> None:
    alone = trained(ACoLSettings(), tmp_path / "alone")
    assert alone.history[0].keys() == {"step", "loss", "classification", "complement"}
    assert alone.history[0]["complement"] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.4)
    assert alone.maps.min() >= 0 and alone.maps.max() <= 1
    assert torch.equal(alone.maps, alone.again())
    both = trained(ACoLSettings(), tmp_path / "both", EGASettings().ingredients())
    assert both.history[-1]["loss"] < 12 and "entropy_adversarial" in both.history[0]
