"""Comparators: masks, drops, seeds and combinations by hand; what learns from what; where their layers stand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cam_helpers import one_step
from pydantic import ValidationError
from torch import nn

from repro.losses import AttackSettings, pgd_attack
from repro.models import CAMOutput, small_cam, small_inception, squeezenet_cam, vgg16_cam
from repro.models.cam_backbones import NonLocalBlock
from repro.training import CAMSettings, SeenBatch, TrainingSettings, prepare_network
from repro.training.batches import Share
from repro.training.comparators.attention import (
    BackpropSettings,
    CCAMSettings,
    DANetSettings,
    NLCCAMSettings,
    SeveralMaps,
    SPGSettings,
    combine_maps,
    discrepancy,
    parent_levels,
    rank_weights,
    saliency,
    seed_loss,
    seeds,
    segment,
)
from repro.training.comparators.erasing import (
    ACoLSettings,
    ADLSettings,
    AttentionDrop,
    CutMixSettings,
    HaSSettings,
    erase,
    hidden_pixels,
    pasted_pixels,
)


def reached(term: torch.Tensor, modules: dict[str, nn.Module]) -> set[str]:
    """Names of the modules that a term has a gradient for."""
    for module in modules.values():
        module.zero_grad()
    term.backward(retain_graph=True)
    return {
        name
        for name, module in modules.items()
        if any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    }


# HaS


def test_patches_cover_the_grid_from_the_upper_left_corner() -> None:
    hide = torch.tensor([[[True, False], [False, True]]] * 2)
    found = hidden_pixels(hide, torch.tensor([2, 0]), 3)
    assert found[0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert not found[1].any()  # size 0: the whole image stays


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_share_that_is_hidden_and_that_the_rest_stays(probability: float) -> None:
    plain, hidden = (
        one_step([]).batch.images,
        one_step([HaSSettings(sizes=(32,), probability=probability)]).batch.images,
    )
    changed = (hidden != plain).any(1)
    assert changed.float().mean() == pytest.approx(probability, abs=0.2 * (probability == 0.5))
    assert torch.equal(hidden, plain.masked_fill(changed[:, None], 0.0))


# CutMix


def test_the_box_has_the_area_that_lambda_leaves_and_is_cut_at_the_border() -> None:
    quarter, half, zero, one = torch.tensor([0.75, 0.5, 0.0, 1.0])
    found = pasted_pixels(quarter, half, half, 8, 8)
    assert found.sum() == 16 and found[2:6, 2:6].all()  # side 4 of 8
    corner = pasted_pixels(quarter, zero, zero, 8, 8)
    assert corner.sum() == 4 and corner[:2, :2].all()
    assert not pasted_pixels(one, half, half, 8, 8).any()


def test_one_box_a_batch_is_pasted_and_labels_are_mixed_by_its_real_area() -> None:
    plain, mixed = one_step([]).batch, one_step([CutMixSettings()]).batch
    context = one_step([]).context
    keep, x, y, _ = context.random.shared(4)
    box = pasted_pixels(keep, x, y, 24, 24)
    partner = context.random.shared(8).argsort()
    assert torch.equal(mixed.images, torch.where(box, plain.images[partner], plain.images))
    area, own = box.float().mean(), F.one_hot(plain.labels, 3).float()
    torch.testing.assert_close(mixed.target, (1 - area) * own + area * own[partner])
    assert torch.equal(mixed.labels, plain.labels)
    assert torch.equal(one_step([CutMixSettings(probability=0.0)]).batch.images, plain.images)


# ADL

FEATURES = torch.tensor([[[[1.0, 2.0], [3.0, 10.0]], [[1.0, 4.0], [5.0, 6.0]]]])  # attention 1, 3, 4, 8


def drop(dropping: bool | None) -> AttentionDrop:
    built = AttentionDrop(0.5).train()
    built.dropping = None if dropping is None else torch.tensor(dropping)
    return built


def test_the_drop_mask_keeps_what_is_below_the_threshold_and_the_importance_map_is_a_sigmoid() -> None:
    assert drop(True)(FEATURES).tolist() == [[[[1, 2], [0, 0]], [[1, 4], [0, 0]]]]  # 4 is not below half of 8
    attention = torch.tensor([[1.0, 3.0], [4.0, 8.0]])
    torch.testing.assert_close(drop(False)(FEATURES), FEATURES * attention.sigmoid())
    for unchanged in (drop(None), drop(True).eval()):
        assert torch.equal(unchanged(FEATURES), FEATURES)


def test_the_drop_mask_carries_no_gradient_and_the_importance_does() -> None:
    features = FEATURES.clone().requires_grad_()
    drop(True)(features).sum().backward()
    assert features.grad.unique().tolist() == [0, 1]
    features.grad = None
    drop(False)(features).sum().backward()
    assert len(features.grad.unique()) > 2


def test_drop_layers_stand_behind_two_pools_and_the_last_stage_and_are_silent_outside_of_a_step() -> None:
    part = ADLSettings(drop_rate=1.0)
    step = one_step([part])
    layers = [layer for layer in step.context.network.modules() if isinstance(layer, AttentionDrop)]
    stages = step.context.network.backbone.named_children()
    places = [name for name, stage in stages if any(isinstance(layer, AttentionDrop) for layer in stage.modules())]
    assert places == ["pool2", "pool3", "conv4"]
    with part.forward_context(step.context):
        assert all(layer.dropping for layer in layers)
    assert [layer.dropping for layer in layers] == [None, None, None]
    attack, bare = AttackSettings(random_start=False), one_step([])
    moved = [
        pgd_attack(found.context.network, found.batch.images, found.batch.target, attack) for found in (step, bare)
    ]
    assert torch.equal(moved[0], moved[1])  # an attack sees the network without the drop


# ACoL


def test_features_are_zero_where_the_scaled_map_reaches_the_threshold() -> None:
    maps = torch.tensor([[[-1.0, 1.0], [3.0, 9.0]]], requires_grad=True)  # scaled: 0, 0.2, 0.4, 1
    features = torch.arange(1.0, 9.0).reshape(1, 2, 2, 2).requires_grad_()
    erased = erase(features, maps, 0.4)
    assert erased.tolist() == [[[[1, 2], [0, 0]], [[5, 6], [0, 0]]]]
    erased.sum().backward()
    assert maps.grad is None and features.grad.unique().tolist() == [0, 1]
    assert torch.equal(erase(features, torch.ones(1, 2, 2), 0.4), features)  # a constant map finds nothing


def test_classifier_b_starts_as_a_and_its_loss_reaches_it_and_the_backbone_only() -> None:
    part = ACoLSettings()
    step = one_step([part])
    network = step.context.network
    modules = {"neck": network.neck, "classifier": network.classifier, "backbone": network.backbone}
    modules |= dict(network.branches.items())
    term = part.losses(step.output, step.batch, step.context)["complement"]
    assert term.item() == pytest.approx(math.log(3), abs=0.4)
    assert reached(term, modules) == {"backbone", "acol_neck", "acol_classifier"}
    assert torch.equal(network.branches["acol_classifier"].weight, network.classifier.weight)
    assert isinstance(network.backbone.conv4[1], nn.AvgPool2d)  # before both classifiers


def test_localisation_takes_the_maximum_of_scaled_maps() -> None:
    part = ACoLSettings(threshold=0.5)
    network = prepare_network(small_cam(2, width=4, head="cam"), [part]).eval()
    neck, classifier = nn.Identity(), nn.Conv2d(1, 2, 1, bias=False)
    nn.init.ones_(classifier.weight)
    network.branches["acol_neck"], network.branches["acol_classifier"] = neck, classifier
    first = torch.tensor([[0.0, 2.0], [4.0, 8.0]])
    features = torch.tensor([[[[6.0, 3.0], [9.0, 5.0]]]])
    output = CAMOutput(torch.zeros(1, 2), first.expand(1, 2, 2, 2), {"acol_features": features})
    found = part.localise(SeenBatch(network, torch.zeros(1, 3, 16, 16), output, torch.tensor([1])))
    # A scaled: 0, .25, .5, 1; erased features 6, 3, 0, 0, scaled 1, .5, 0, 0
    assert found.tolist() == [[[1.0, 0.5], [0.5, 1.0]]]


# Backprop


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


# CCAM and NL-CCAM


def test_weights_fall_from_one_to_minus_one_and_the_combination_by_hand() -> None:
    assert rank_weights(5, 1).tolist() == [1, 0.5, 0, -0.5, -1]
    assert rank_weights(5, 2).tolist() == [1, 0.25, 0, -0.25, -1]
    assert rank_weights(1, 2).tolist() == [1]
    maps = torch.tensor([[[[1.0, 0.0]], [[10.0, 20.0]], [[3.0, 5.0]]]])
    assert combine_maps(maps, torch.tensor([[0.0, 1.0, 2.0]]), 2).tolist() == [[[2.0, 5.0]]]  # map 2 - map 0
    assert combine_maps(maps, torch.tensor([[1.0, 2.0, 0.0]]), 2).tolist() == [[[7.0, 15.0]]]  # map 1 - map 2


def test_a_non_local_block_starts_as_identity_and_every_place_sees_every_other() -> None:
    torch.manual_seed(0)
    block, features = NonLocalBlock(4).eval(), torch.randn(2, 4, 3, 3)
    assert torch.equal(block(features), features)
    nn.init.ones_(block.norm.weight)
    features.requires_grad_()
    (block(features) - features)[0, 0, 0, 0].backward()
    assert (features.grad[0].abs().sum(0) > 0).all() and not features.grad[1].any()


def test_a_non_local_block_by_hand() -> None:
    block = NonLocalBlock(2).eval()
    for layer, value in ((block.query, 0.0), (block.key, 1.0), (block.value, 1.0), (block.output, 1.0)):
        nn.init.constant_(layer.weight, value)
        nn.init.zeros_(layer.bias)
    nn.init.constant_(block.norm.weight, (1 + block.norm.eps) ** 0.5)
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]]]])
    # a zero query attends to all places alike: values are 4 and 8, their mean 6, and the output adds two of them
    torch.testing.assert_close(block(features), features + 12)


def test_nl_ccam_is_the_authors_network_and_ccam_that_of_plain_cam() -> None:
    network = prepare_network(vgg16_cam(5, batch_norm="none"), [NLCCAMSettings()])
    kinds = [type(layer) for layer in network.modules()]
    assert kinds.count(NonLocalBlock) == 4 and kinds.count(nn.LeakyReLU) == 13 and nn.ReLU not in kinds
    assert isinstance(network.classifier, nn.Linear) and network.classifier.weight.shape == (5, 512)
    training = TrainingSettings(epochs=3)
    for method in (CCAMSettings(training=training), BackpropSettings(training=training)):
        assert method.trained_as == CAMSettings(training=training)
    assert NLCCAMSettings().trained_as == NLCCAMSettings()


# SPG


def test_seeds_by_hand_and_the_fallback_where_fewer_than_30_of_224_squared_pixels_remain() -> None:
    mask = torch.tensor([[[0.0, 0.04, 0.5], [0.69, 0.71, 1.0]]])
    assert seeds(mask, (0.7, 0.05)).tolist() == [[[0, 0, -1], [-1, 1, 1]]]
    # nothing above 0.7: what is above 0.7 of the maximum
    assert seeds(0.5 * mask, (0.7, 0.05)).tolist() == [[[0, 0, -1], [-1, 1, 1]]]
    assert seeds(torch.zeros(1, 2, 2), (0.7, 0.05)).tolist() == [[[0, 0], [0, 0]]]
    large = torch.full((2, 224, 224), 0.6)
    large[0].view(-1)[:29], large[1].view(-1)[:30] = 0.8, 0.8
    assert [(image == 1).sum().item() for image in seeds(large, (0.7, 0.05))] == [224 * 224, 30]  # 0.6 > 0.7 · 0.8


def test_seed_loss_counts_seeds_only_and_its_ratio_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[[0.0, 2.0, -5.0]]], requires_grad=True)
    total, count = seed_loss(logits, torch.tensor([[[1.0, 0.0, -1.0]]]))
    assert (total / count).item() == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2)
    total.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0, 0] < 0, logits.grad[0, 0, 1] > 0, logits.grad[0, 0, 2] == 0) == (True, True, True)
    assert seed_loss(logits, torch.full((1, 1, 3), -1.0))[1].item() == 0
    monkeypatch.setattr(Share, "total", lambda self, value: torch.tensor(7.0 + 3.0))
    parts = [(Share(8, 0, 3), 4.0, 7.0), (Share(8, 1, 3), 5.0, 3.0), (Share(8, 2, 3), 0.0, 0.0)]
    terms = [share.weight * share.ratio(torch.tensor(a), torch.tensor(b)) for share, a, b in parts]
    assert torch.stack(terms).mean().item() == pytest.approx((4.0 + 5.0) / 10)


def test_each_mask_learns_and_its_teacher_does_not() -> None:
    part = SPGSettings()
    step = one_step([part])
    network = step.context.network
    modules = dict(network.branches.items())
    modules |= {"conv4": network.backbone.conv4, "neck": network.neck, "classifier": network.classifier}
    terms = part.losses(step.output, step.batch, step.context)
    assert reached(terms["spg_b2"], modules) == {"spg_b2", "spg_shared", "conv4"}
    assert reached(terms["spg_b1"], modules) == {"spg_b1", "spg_shared"}
    assert reached(terms["spg_c"], modules) == {"spg_c", "neck", "conv4"}
    assert all(term.item() == pytest.approx(math.log(2), abs=0.35) for term in terms.values())


def test_spg_stands_where_the_benchmark_has_it_and_its_probe_moves_no_statistics() -> None:
    network = small_cam(3, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepare_network(network, [SPGSettings()])
    assert network._stages == {"spg_b1": "pool3", "spg_b2": "conv4", "spg_c": "neck"}
    assert network.branches["spg_b1"][0].in_channels == 16 == network.branches["spg_b1"][0].out_channels
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValidationError, match="upper threshold first"):
        SPGSettings(second=(0.05, 0.5))


# DANet

PARENTS = ((0, 1, 0), (0, 0, 1))


def danet(**changes: Any) -> DANetSettings:
    return DANetSettings(maps=4, parents=PARENTS).model_copy(update=changes)


def test_discrepancy_of_hand_made_maps_and_that_minimising_it_drives_maps_apart() -> None:
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 4.0]]]])  # pairs: 0, 3/5, 4/5
    assert discrepancy(maps).item() == pytest.approx((0 + 0.6 + 0.8) / 3)
    assert discrepancy(torch.ones(2, 5, 3, 3)).item() == pytest.approx(1)
    assert discrepancy(torch.tensor([[[[1.0]], [[-2.0]]]])).item() == pytest.approx(1)  # the authors take |·|
    random = torch.rand(1, 3, 4, 4, requires_grad=True)
    before = discrepancy(random)
    before.backward()
    assert discrepancy(random.detach() - random.grad) < before


@pytest.mark.parametrize("head", ["acol", "cam"])
def test_class_maps_start_as_they_were_and_are_means_of_different_maps(head: str) -> None:
    network = small_cam(3, width=4, head=head).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    before = network.cam(images)
    wrapped = prepare_network(network, [danet()]).eval()
    after = wrapped.cam(images)
    assert torch.allclose(after.logits, before.logits, atol=1e-5)
    assert torch.equal(wrapped(images), after.logits)
    assert isinstance(wrapped.classifier, SeveralMaps)
    every = wrapped.classifier.maps(after.auxiliary["danet_features"])
    assert every.shape == (2, 3, 4, 4, 4)
    assert torch.allclose(every.mean(2), after.maps, atol=1e-6)
    assert not torch.allclose(every[:, :, 0], every[:, :, 1], atol=1e-3)


def test_heads_of_parents_stand_one_and_two_pools_earlier_and_terms_reach_what_they_should() -> None:
    part = danet()
    step = one_step([part])
    network = step.context.network
    assert network._stages["danet_parents0"] == "pool3" and network._stages["danet_parents1"] == "pool2"
    assert [network.branches[f"danet_parents{n}"].neck[0].out_channels for n in (0, 1)] == [16, 8]
    modules = {"classifier": network.classifier, "conv4": network.backbone.conv4, "conv2": network.backbone.conv2}
    modules |= dict(network.branches.items())
    terms = part.losses(step.output, step.batch, step.context)
    assert terms.keys() == {"discrepancy", "parents0", "parents1"}
    assert reached(terms["parents0"], modules) == {"conv2", "danet_parents0"}
    assert reached(terms["parents1"], modules) == {"conv2", "danet_parents1"}
    assert {"classifier", "danet_parents0"} < reached(terms["discrepancy"], modules)
    assert terms["parents0"].item() == pytest.approx(0.5 * math.log(2), abs=0.2)
    assert part.classification_weight() == 0.5


def test_localisation_averages_rectified_maps_of_the_class_and_of_its_most_probable_parents() -> None:
    part = danet(parents=((0, 1, 0),))
    network = prepare_network(small_cam(3, width=4), [part]).eval()
    child, parent = torch.randn(1, 3, 4, 2, 2), torch.randn(1, 2, 4, 2, 2)
    parent[:, 1] += 3
    network.classifier.maps = lambda features: child  # type: ignore[method-assign, union-attr]
    auxiliary = {"danet_features": torch.zeros(1, 1, 2, 2), "danet_parents0": parent}
    output = CAMOutput(torch.zeros(1, 3), torch.zeros(1, 3, 2, 2), auxiliary)
    found = part.localise(SeenBatch(network, torch.zeros(1, 3, 16, 16), output, torch.tensor([2])))
    torch.testing.assert_close(found[0], (child[0, 2].relu().mean(0) + parent[0, 1].relu().mean(0)) / 2)


def test_parents_come_from_the_classes() -> None:
    assert parent_levels(["T-shirt/top", "Trouser", "Coat", "Ankle boot"]) == ((0, 1, 0, 2),)
    birds = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "013.Bobolink", "034.Gray_crowned_Rosy_Finch"]
    assert parent_levels(birds) == ((0, 0, 1, 2), (0, 0, 1, 1))
    all_birds = parent_levels([f"{number:03d}.Bird" for number in range(1, 201)])
    assert [max(level) + 1 for level in all_birds] == [37, 11]  # the counts in the authors' code
    assert parent_levels(["star", "moon"]) == () == parent_levels(birds[:2]) == parent_levels(["Coat", "Bag"])
    assert DANetSettings().for_classes(birds).parents == ((0, 0, 1, 2), (0, 0, 1, 1))
    assert DANetSettings(parents=PARENTS).for_classes(birds).parents == PARENTS
    with pytest.raises(ValueError, match="hierarchy has 3 classes, but the network 5"):
        prepare_network(small_cam(5, width=4), [danet()])


@pytest.mark.parametrize("build", [small_inception, squeezenet_cam])
@pytest.mark.parametrize("part", [SPGSettings(), danet(), ADLSettings(), ACoLSettings(), NLCCAMSettings()])
def test_layers_fit_every_kind_of_backbone(build: Any, part: Any) -> None:
    network = prepare_network(build(3, width=8), [part]).eval()
    output = network.cam(torch.zeros(1, 3, 64, 64))
    assert output.maps.shape[:2] == (1, 3)
