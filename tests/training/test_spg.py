"""SPG: seeds and their loss by hand, no gradient through seeds, layers where the benchmark has them."""

import math
from pathlib import Path

import pytest
import torch
from comparator_helpers import one_step, trained
from pydantic import ValidationError

from repro.models import small_cam, small_inception, squeezenet_cam
from repro.training import EGASettings, prepare_network
from repro.training.comparators import SelfProducedGuidance, SPGSettings
from repro.training.comparators.attention import seed_loss, seeds


def part() -> SelfProducedGuidance:
    return SPGSettings().ingredients()[0]  # type: ignore[return-value]


def test_seeds_by_hand() -> None:
    mask = torch.tensor([[[0.0, 0.04, 0.5], [0.69, 0.71, 1.0]]])
    assert seeds(mask, (0.7, 0.05)).tolist() == [[[0, 0, -1], [-1, 1, 1]]]
    # nothing above 0.7: what is above 0.7 of the maximum
    assert seeds(0.5 * mask, (0.7, 0.05)).tolist() == [[[0, 0, -1], [-1, 1, 1]]]
    assert seeds(torch.zeros(1, 2, 2), (0.7, 0.05)).tolist() == [[[0, 0], [0, 0]]]


def test_loss_counts_seeds_only() -> None:
    logits = torch.tensor([[[0.0, 2.0, -5.0]]], requires_grad=True)
    loss = seed_loss(logits, torch.tensor([[[1.0, 0.0, -1.0]]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0, 0] < 0, logits.grad[0, 0, 1] > 0, logits.grad[0, 0, 2] == 0) == (True, True, True)
    assert seed_loss(logits, torch.full((1, 1, 3), -1.0)).item() == 0


def reached(term: torch.Tensor, modules: dict[str, torch.nn.Module]) -> set[str]:
    """Names of the modules that a term has a gradient for."""
    for module in modules.values():
        module.zero_grad()
    term.backward(retain_graph=True)
    return {
        name
        for name, module in modules.items()
        if any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    }


def test_each_mask_learns_and_its_teacher_does_not() -> None:
    own = part()
    step = one_step([own])
    network = step.context.network
    modules = dict(network.branches.items()) | {
        "conv4": network.backbone.conv4,
        "neck": network.neck,
        "classifier": network.classifier,
    }
    terms = own.losses(step.output, step.batch, step.context)
    assert reached(terms["spg_b2"], modules) == {"spg_b2", "spg_shared", "conv4"}
    assert reached(terms["spg_b1"], modules) == {"spg_b1", "spg_shared"}
    assert reached(terms["spg_c"], modules) == {"spg_c", "neck", "conv4"}


def test_layers_stand_where_the_benchmark_has_them() -> None:
    network = small_cam(3, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare_network(network, [part()])  # the probe must not move running statistics
    assert network._stages == {"spg_b1": "pool3", "spg_b2": "conv4", "spg_c": "neck"}
    assert network.branches["spg_b1"][0].in_channels == 16 == network.branches["spg_b1"][0].out_channels
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("build", [small_inception, squeezenet_cam])
def test_it_fits_every_kind_of_backbone(build) -> None:
    network = prepare_network(build(3, width=8), [part()]).eval()
    output = network.cam(torch.zeros(1, 3, 64, 64))
    assert output.auxiliary["spg_c"].shape[2:] == output.maps.shape[2:]


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValidationError, match="upper threshold first"):
        SPGSettings(second=(0.05, 0.5))


def test_it_trains_alone_and_with_ega_and_localises(tmp_path: Path) -> None:
    alone = trained(SPGSettings(), tmp_path / "alone")
    assert alone.history[0].keys() == {"step", "loss", "classification", "spg_b2", "spg_b1", "spg_c"}
    assert all(alone.history[0][name] == pytest.approx(math.log(2), abs=0.35) for name in ("spg_b2", "spg_b1", "spg_c"))
    assert torch.equal(alone.maps, alone.again())
    both = trained(SPGSettings(), tmp_path / "both", EGASettings().ingredients())
    assert both.history[-1]["loss"] < 12 and "entropy_adversarial" in both.history[0]
