"""ADL: masks by hand, drawn per step, silent in evaluation and during an attack."""

from pathlib import Path

import torch
from comparator_helpers import one_step, trained

from repro.losses import AttackSettings, pgd_attack
from repro.models import small_cam
from repro.training import prepare_network
from repro.training.comparators import ADLSettings, AttentionDropLayers, WithEGA
from repro.training.comparators.erasing import AttentionDrop

FEATURES = torch.tensor([[[[1.0, 2.0], [3.0, 10.0]], [[1.0, 4.0], [5.0, 6.0]]]])  # attention 1, 3, 4, 8


def layer(dropping: bool | None, threshold: float = 0.5) -> AttentionDrop:
    built = AttentionDrop(threshold).train()
    built.dropping = dropping
    return built


def test_the_drop_mask_keeps_what_is_below_the_threshold() -> None:
    assert layer(True)(FEATURES).tolist() == [[[[1, 2], [0, 0]], [[1, 4], [0, 0]]]]  # 4 is not below half of 8


def test_the_importance_map_is_the_sigmoid_of_the_attention() -> None:
    attention = torch.tensor([[1.0, 3.0], [4.0, 8.0]])
    torch.testing.assert_close(layer(False)(FEATURES), FEATURES * attention.sigmoid())


def test_the_mask_carries_no_gradient_and_the_importance_does() -> None:
    features = FEATURES.clone().requires_grad_()
    layer(True)(features).sum().backward()
    assert features.grad.unique().tolist() == [0, 1]
    features.grad = None
    layer(False)(features).sum().backward()
    assert len(features.grad.unique()) > 2


def test_nothing_happens_in_evaluation_and_outside_of_a_step() -> None:
    assert torch.equal(layer(None)(FEATURES), FEATURES)
    assert torch.equal(layer(True).eval()(FEATURES), FEATURES)


def test_layers_stand_behind_the_last_two_pools_and_the_last_stage() -> None:
    network = prepare_network(small_cam(2, width=4), [AttentionDropLayers(0.75, 0.8)])
    places = [name for name, stage in network.backbone.named_children() if any(_drops(stage))]
    assert places == ["pool2", "pool3", "conv4"]


def _drops(stage: torch.nn.Module) -> list[AttentionDrop]:
    return [module for module in stage.modules() if isinstance(module, AttentionDrop)]


def test_a_step_draws_once_per_layer_and_leaves_nothing_behind() -> None:
    part = AttentionDropLayers(0.75, 0.8)
    step = one_step([part])
    layers = _drops(step.context.network)
    with part.forward_context(step.context):
        drawn = [found.dropping for found in layers]
        assert all(isinstance(found, bool) for found in drawn)
    assert [found.dropping for found in layers] == [None, None, None]
    always = AttentionDropLayers(1.0, 0.8)
    with always.forward_context(step.context):
        assert all(found.dropping for found in layers)


def test_an_attack_sees_the_network_without_the_drop() -> None:
    step = one_step([AttentionDropLayers(1.0, 0.8)])
    bare = one_step([])
    attack = AttackSettings(random_start=False)
    moved = [
        pgd_attack(found.context.network, found.batch.images, found.batch.target, attack) for found in (step, bare)
    ]
    assert torch.equal(moved[0], moved[1])


def test_it_trains_alone_and_with_ega(tmp_path: Path) -> None:
    alone = trained(ADLSettings(), tmp_path / "alone")
    assert alone.maps.isfinite().all() and torch.equal(alone.maps, alone.again())
    both = trained(WithEGA.of(ADLSettings()), tmp_path / "both")
    assert "entropy_adversarial" in both.history[0] and torch.equal(both.maps, both.again())
