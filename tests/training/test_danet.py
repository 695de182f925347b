"""DANet: discrepancy by hand, class maps as means, parents from names, gradients of each term."""

from pathlib import Path

import pytest
import torch
from comparator_helpers import one_step, trained

from repro.data.wsol_metadata import parent_levels
from repro.models import small_cam
from repro.training import EGASettings, prepare_network
from repro.training.comparators import DANetSettings, DivergentActivation
from repro.training.comparators.attention import SeveralMaps, discrepancy

PARENTS = ((0, 1, 0),)


def part(**changes: object) -> DivergentActivation:
    return DANetSettings(maps=4, parents=PARENTS).model_copy(update=changes).ingredients()[0]  # type: ignore[return-value]


def test_discrepancy_of_hand_made_maps() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 4.0]]]])  # pairs: 0, 3/5, 4/5
    assert discrepancy(maps).item() == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert discrepancy(torch.ones(2, 5, 3, 3)).item() == pytest.approx(1)
    assert discrepancy(torch.tensor([[[[1.0]], [[-2.0]]]])).item() == pytest.approx(-1)


def test_minimising_the_discrepancy_drives_maps_apart() -> None:
    maps = torch.rand(1, 3, 4, 4, requires_grad=True)
    before = discrepancy(maps)
    before.backward()
    assert discrepancy(maps.detach() - maps.grad) < before


@pytest.mark.parametrize("head", ["acol", "cam"])
def test_class_maps_start_as_they_were_and_are_means_of_different_maps(head: str) -> None:
    network = small_cam(3, width=4, head=head).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    before = network.cam(images)
    wrapped = prepare_network(network, [part()]).eval()
    after = wrapped.cam(images)
    assert torch.allclose(after.logits, before.logits, atol=1e-5)
    assert torch.equal(wrapped(images), after.logits)
    assert isinstance(wrapped.classifier, SeveralMaps)
    every = wrapped.classifier.maps(after.auxiliary["danet_features"])
    assert every.shape == (2, 3, 4, 4, 4)
    assert torch.allclose(every.mean(2), after.maps, atol=1e-6)
    assert not torch.allclose(every[:, :, 0], every[:, :, 1], atol=1e-3)


def test_terms_reach_what_they_should() -> None:
    own = part()
    step = one_step([own])
    network = step.context.network
    terms = own.losses(step.output, step.batch, step.context)
    terms["discrepancy"].backward(retain_graph=True)
    assert network.classifier.weight.grad.any() and not any(p.grad is not None for p in network.branches.parameters())
    absent = [label for label in range(3) if label not in step.batch.labels]
    assert all(not network.classifier.weight.grad.view(3, 4, -1)[label].any() for label in absent)
    network.zero_grad()
    terms["parents0"].backward()
    assert network.classifier.weight.grad is None and all(p.grad.any() for p in network.branches.parameters())
    assert terms["parents0"].item() == pytest.approx(torch.tensor(2.0).log().item(), abs=0.4)
    doubled = part(discrepancy_weight=0.02).losses(step.output, step.batch, step.context)["discrepancy"]
    assert doubled.item() == pytest.approx(2 * terms["discrepancy"].item())


def test_parents_come_from_the_names() -> None:
    assert parent_levels(["T-shirt/top", "Trouser", "Coat", "Ankle boot"]) == ((0, 1, 0, 2),)
    birds = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "013.Bobolink", "034.Gray_crowned_Rosy_Finch"]
    assert parent_levels(birds) == ((0, 0, 1, 2),)
    assert parent_levels(["star", "moon"]) == () == parent_levels(birds[:2]) == parent_levels(["Coat", "Bag"])
    assert DANetSettings().for_classes(birds).parents == ((0, 0, 1, 2),)
    assert DANetSettings(parents=PARENTS).for_classes(birds).parents == PARENTS
    with pytest.raises(ValueError, match="hierarchy has 3 classes, but the network 5"):
        prepare_network(small_cam(5, width=4), [part()])


def test_it_trains_alone_and_with_ega_and_localises(tmp_path: Path) -> None:
    alone = trained(DANetSettings(parents=PARENTS), tmp_path / "alone")
    assert alone.history[0].keys() == {"step", "loss", "classification", "discrepancy", "parents0"}
    assert torch.equal(alone.maps, alone.again())
    both = trained(DANetSettings(), tmp_path / "both", EGASettings().ingredients())
    assert both.history[-1]["loss"] < 12 and "entropy_adversarial" in both.history[0]
