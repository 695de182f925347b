"""Localisation metrics: values by hand, threshold policies, shards of uneven size, the centre baseline."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import oracle_localisation as oracle
import pytest
import torch
from torchmetrics.utilities import dim_zero_cat

from repro.metrics import (
    BoxCurves,
    CorLoc,
    FixedThreshold,
    GTKnownLoc,
    MaxBoxAcc,
    MaxBoxAccV2,
    OracleThreshold,
    Top1Loc,
    Top5Loc,
    ValidationThreshold,
    box_curves,
    center_gaussian,
    center_gaussian_curves,
)
from repro.metrics.boxes import scale_boxes


def step_curves(*steps: tuple[int, float]) -> BoxCurves:
    """One image per (level, iou): overlap `iou` from that level on, 0 below."""
    iou = torch.zeros(len(steps), 3, 257)
    for i, (level, value) in enumerate(steps):
        iou[i, :, level + 1 :] = value
    return BoxCurves(iou, torch.full((len(steps),), 255))


def evaluate(metric, curves: BoxCurves, *correct):
    metric.update(curves, *correct)
    return metric.compute()


def random_curves(count: int, seed: int = 0) -> BoxCurves:
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.standard_normal((count, 5, 5)))
    boxes = [np.array([[2, 3, 20, 4 + rng.integers(5, 20)]]) for _ in range(count)]
    return box_curves(maps, boxes, side=28)


def test_max_box_acc_equals_the_benchmarks():
    rng = np.random.default_rng(1)
    stored = rng.standard_normal((20, 6, 6))
    boxes = [np.array([[5, 5, 25, 20 + i % 8]]) for i in range(20)]
    curves = box_curves(torch.from_numpy(stored), boxes, side=32)
    scores = [oracle.normalised(cam, 32) for cam in stored]
    for metric, rule, ious in ((MaxBoxAcc(), "largest", (0.5,)), (MaxBoxAccV2(), "all", (0.3, 0.5, 0.7))):
        plain = [oracle.best_iou_distinct(s, b, rule) for s, b in zip(scores, boxes, strict=True)]
        result = evaluate(metric, curves)
        assert result.value == pytest.approx(oracle.max_box_acc(np.array(plain), ious), abs=1e-12)
        assert result.hits.shape == (20, len(ious))
        assert result.hits.mean() * 100 == pytest.approx(result.value)


def test_accuracy_is_one_division_of_two_integers():
    """7 images with 3, 2 and 1 hits: 600 / 21, where a mean of three rounded shares ends on another double."""
    result = evaluate(MaxBoxAccV2(), step_curves((0, 0.8), (0, 0.6), (0, 0.4), *[(0, 0.1)] * 4))
    assert result.hits.sum(axis=0).tolist() == [3, 2, 1]
    assert result.value == 100 * 6 / 21


def test_policies_choose_and_report_their_threshold():
    """Overlap appears at levels 26, 52 and 204: τ = .2 sees one image, the oracle needs τ = .8 for three."""
    curves = step_curves((26, 0.9), (52, 0.9), (204, 0.9))
    fixed = evaluate(GTKnownLoc(FixedThreshold(0.2)), curves)
    assert (fixed.thresholds, fixed.n, fixed.policy) == ((0.2,), 3, "FixedThreshold")
    assert fixed.value == pytest.approx(100 / 3)  # ⌊.2 · 255⌋ = 51 < 52
    best = evaluate(GTKnownLoc(OracleThreshold()), curves)
    assert best.value == 100
    assert best.thresholds == pytest.approx((0.8,))  # the lowest with ⌊τ · 255⌋ >= 204
    held_out = evaluate(GTKnownLoc(ValidationThreshold(step_curves((52, 0.9)))), curves)
    assert held_out.value == pytest.approx(200 / 3)
    assert held_out.thresholds == pytest.approx((0.204,))


def test_iou_threshold_is_inclusive_and_exact_for_decimal_fractions():
    for numerator in range(1, 10):
        curves = step_curves((0, numerator / 10))
        assert evaluate(GTKnownLoc(iou=numerator / 10), curves).value == 100
        assert evaluate(GTKnownLoc(iou=numerator / 10 + 1e-4), curves).value == 0


def test_top1_needs_the_class_and_corloc_is_gt_known():
    curves = step_curves((0, 0.9), (0, 0.9), (0, 0.1), (0, 0.9))
    correct = torch.tensor([True, False, True, True])
    assert evaluate(Top1Loc(), curves, correct).value == 50
    assert evaluate(Top5Loc(), curves, torch.ones(4, dtype=torch.bool)).value == 75
    assert CorLoc is GTKnownLoc
    with pytest.raises(ValueError, match="correct=…"):
        evaluate(Top1Loc(ValidationThreshold(curves)), curves, correct)
    policy = ValidationThreshold(curves, correct)
    assert evaluate(Top1Loc(policy), curves, correct).value == 50
    with pytest.raises(ValueError, match="expected \\(4,\\)"):
        Top1Loc().update(curves, correct[:2])


def test_only_top1_chooses_its_threshold_among_images_of_the_right_class():
    held_out = step_curves((52, 0.9), (200, 0.9), (200, 0.9))  # τ 0.2 would do for one, 0.8 for all
    policy = ValidationThreshold(held_out, torch.tensor([True, False, False]))
    assert evaluate(Top1Loc(policy), held_out, torch.ones(3, dtype=torch.bool)).value == pytest.approx(100 / 3)
    assert evaluate(GTKnownLoc(policy), held_out).value == 100


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="fraction in"):
        FixedThreshold(1.0)
    with pytest.raises(ValueError, match="ious is"):
        MaxBoxAccV2(ious=(30, 50, 70))
    with pytest.warns(UserWarning, match="before the"), pytest.raises(ValueError, match="no images"):
        MaxBoxAcc().compute()
    with pytest.raises(ValueError, match="no image"):
        ValidationThreshold(step_curves())


@pytest.mark.parametrize("sizes", [(7, 4), (11, 0), (0, 11)])
def test_uneven_shards_of_two_processes_equal_one(sizes: tuple[int, int]):
    """Synchronisation as torchmetrics does it, with the other process's states handed in by the gather."""
    whole = random_curves(sum(sizes))
    first, second = MaxBoxAccV2(), MaxBoxAccV2()
    first.update(BoxCurves(whole.iou[: sizes[0]], whole.peaks[: sizes[0]]))
    second.update(BoxCurves(whole.iou[sizes[0] :], whole.peaks[sizes[0] :]))
    others = iter([dim_zero_cat(state) for state in (second.iou, second.peaks, second.correct)])
    first.dist_sync_fn = lambda mine, group: [mine, next(others)]
    first.distributed_available_fn = lambda: True
    together, alone = first.compute(), evaluate(MaxBoxAccV2(), whole)
    assert together.value == alone.value
    assert np.array_equal(together.hits, alone.hits)


def test_batches_equal_one_update():
    whole = random_curves(11)
    metric = MaxBoxAccV2()
    for shard in (slice(0, 3), slice(3, 3), slice(3, 11)):
        metric.update(BoxCurves(whole.iou[shard], whole.peaks[shard]))
    split, alone = metric.compute(), evaluate(MaxBoxAccV2(), whole)
    assert split.value == alone.value
    assert np.array_equal(split.hits, alone.hits)


def test_center_baseline_equals_box_curves_of_its_map():
    sizes = [(300, 200), (64, 80), (224, 224)]
    boxes = [
        np.array([[10, 20, 200, 150], [0, 0, 299, 199]]),
        np.array([[5, 5, 60, 70]]),
        np.array([[0, 0, 9, 9]]),
    ]
    for convention in ("benchmark", "clean"):
        quick = center_gaussian_curves(sizes, boxes, convention=convention)
        scaled = [scale_boxes(b, s, convention=convention) for b, s in zip(boxes, sizes, strict=True)]
        plain = box_curves(center_gaussian().expand(3, -1, -1), scaled, convention=convention)
        assert torch.equal(quick.iou, plain.iou)
        assert torch.equal(quick.peaks, plain.peaks)


@pytest.mark.parametrize(("dataset", "published"), [("CUB", 56.83), ("ILSVRC", 53.39)])
def test_center_baseline_on_the_real_metadata(dataset: str, published: float):
    """MaxBoxAccV2 of the centre Gaussian: 56.83 on CUB test, 53.39 on ILSVRC test (digest: EGA §2)."""
    root = Path(os.environ.get("REPRO_DATA", "data")) / "wsol_metadata"
    folder = next(iter(root.glob(f"**/{dataset}/test")), None)
    if folder is None:
        pytest.skip(f"no {dataset}/test metadata under REPRO_DATA/wsol_metadata")
    boxes = defaultdict(list)
    for line in (folder / "localization.txt").read_text().splitlines():
        name, *corners = line.split(",")
        boxes[name].append([float(corner) for corner in corners])
    rows = [line.split(",") for line in (folder / "image_sizes.txt").read_text().splitlines()]
    sizes = [(int(width), int(height)) for _, width, height in rows]
    result = evaluate(MaxBoxAccV2(), center_gaussian_curves(sizes, [np.array(boxes[row[0]]) for row in rows]))
    assert round(result.value, 2) == published
