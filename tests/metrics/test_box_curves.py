"""Box curves against the plain OpenCV evaluation at all 1000 thresholds, hand-computed maps and
properties."""

import numpy as np
import oracle_localisation as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.metrics.boxes import THRESHOLDS, box_curves, levels_at, scale_boxes


def random_boxes(rng: np.random.Generator, width: int, height: int, count: int) -> np.ndarray:
    x, y = np.sort(rng.integers(0, width, (count, 2))), np.sort(rng.integers(0, height, (count, 2)))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def assert_matches_oracle(scores: np.ndarray, truth: list[np.ndarray]) -> None:
    """Rules `all` and `largest` at 1000 thresholds, bit for bit in the curves' float32."""
    curves = box_curves(torch.from_numpy(scores), truth, normalisation="none", side=None)
    for rule in ("all", "largest"):
        matrix = curves.matrix(rule).numpy()
        for i, score in enumerate(scores):
            expected = oracle.best_iou_distinct(score, truth[i], rule).astype(np.float32)
            ours = matrix[i, levels_at(THRESHOLDS, int(curves.peaks[i]))]
            assert np.array_equal(ours, expected), (rule, score.tolist(), truth[i].tolist())


def test_small_adversarial_maps_match_opencv():
    """2100 maps of few grey levels: nested rings, diagonals, ties, one-pixel lines, empty masks, low
    peaks."""
    rng = np.random.default_rng(0)
    for _ in range(140):
        height, width = rng.integers(1, 12, 2)
        steps = rng.integers(1, 7)
        scores = rng.integers(0, steps + 1, (15, height, width)) / steps * rng.choice([1, 0.8, 0.01])
        truth = [random_boxes(rng, width, height, rng.integers(1, 4)) for _ in scores]
        assert_matches_oracle(scores, truth)


@pytest.mark.parametrize("base", [4, 7, 14, 28])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_enlarged_maps_match_opencv(base: int, noise: float):
    """304 smooth or noisy maps of 56 pixels, made from maps of 4 to 28."""
    rng = np.random.default_rng(base)
    scores = np.stack([oracle.normalised(rng.standard_normal((base, base)), 56) for _ in range(38)])
    scores = (scores + noise * rng.random(scores.shape)) / (1 + noise)
    assert_matches_oracle(scores, [random_boxes(rng, 56, 56, rng.integers(1, 4)) for _ in scores])


def test_full_size_maps_match_opencv_from_the_stored_logits():
    """14 x 14 float32 in: enlarging, normalising and quantising are the benchmark's too."""
    rng = np.random.default_rng(7)
    stored = rng.standard_normal((8, 14, 14)).astype(np.float32)
    stored[7] = 0.3
    truth = [random_boxes(rng, 224, 224, 2) for _ in stored]
    curves = box_curves(torch.from_numpy(stored), truth)
    for i, cam in enumerate(stored):
        expected = oracle.best_iou_distinct(oracle.normalised(cam, 224), truth[i]).astype(np.float32)
        levels = levels_at(THRESHOLDS, int(curves.peaks[i]))
        assert np.array_equal(curves.matrix("all")[i].numpy()[levels], expected)


def test_hole_box_by_hand():
    """A ring around one pixel in 4 x 5: outer box, and the hole's box, which the clean convention leaves
    out."""
    grid = torch.zeros(1, 4, 5)
    grid[0, :3, :3] = 1
    grid[0, 1, 1] = 0
    ring = [np.array([[0, 0, 3, 3]])]  # benchmark boxes end one pixel late
    assert box_curves(grid, ring, side=None).matrix("all")[0, 0] == 1
    assert box_curves(grid, [np.array([[0, 0, 3, 3]])], side=None, convention="clean").matrix()[0, 0] == 1
    far = torch.ones(1, 4, 5)
    far[0, 2, 3] = 0  # hole box: 2..4 + 1, 1..3 + 1, clipped to the last pixel
    target = [np.array([[2, 1, 4, 3]])]
    assert box_curves(far, target, side=None).matrix("all")[0, 0] == 1
    assert box_curves(far, target, side=None, holes=False).matrix("all")[0, 0] == pytest.approx(9 / 20)


def test_rules_and_comparison_by_hand():
    """Two blobs in 4 x 5: 2 x 2 at level 255 and 1 x 2 at 128, clean boxes."""
    grid = torch.zeros(1, 4, 5)
    grid[0, :2, :2] = 1
    grid[0, 2:, 4] = 128 / 255
    curves = box_curves(grid, [np.array([[4, 2, 5, 4]])], side=None, convention="clean")
    assert curves.matrix("all")[0, 127] == 1
    assert curves.matrix("all")[0, 128] == 0  # v > 128 leaves only the square
    assert curves.matrix("all", ">=")[0, 128] == 1
    assert curves.matrix("largest")[0, 127] == 0
    assert curves.matrix("union")[0, 127] == pytest.approx(2 / 20)
    assert curves.matrix("all", ">=")[0, 0] == pytest.approx(2 / 20)  # everything is >= 0: the whole image


def test_empty_mask_has_the_benchmarks_box():
    blank = torch.full((2, 4, 5), 0.7)
    truth = [np.array([[0, 0, 0, 0]]), np.array([[0, 0, 1, 1]])]
    assert box_curves(blank, truth, side=None).matrix()[:, 0].tolist() == [1.0, 0.25]
    assert box_curves(blank, truth, side=None, convention="clean").matrix().max() == 0


def test_scale_boxes_truncates_only_in_the_benchmark():
    box = np.array([[10, 20, 333, 499]])
    assert scale_boxes(box, (500, 500)).tolist() == [[4, 8, 149, 223]]
    assert scale_boxes(box, (500, 500), convention="clean")[0, 0] == 4.48


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_properties(seed: int):
    """A further true box never lowers a curve; order, threads, scale and offset of maps change nothing."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.integers(0, 9, (3, 6, 7)).astype(np.float64))
    truth = [random_boxes(rng, 7, 6, 2) for _ in maps]
    curves = box_curves(maps, truth, side=None)
    fewer = box_curves(maps, [box[:1] for box in truth], side=None)
    assert (curves.iou >= fewer.iou).all()
    order = rng.permutation(3)
    shuffled = box_curves(maps[order], [truth[i] for i in order], side=None, threads=2)
    assert torch.equal(shuffled.iou, curves.iou[order])
    assert torch.equal(box_curves(maps * 4 - 8, truth, side=None).iou, curves.iou)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_named():
    grid, truth = torch.zeros(1, 4, 5), [np.array([[0, 0, 1, 1]])]
    with pytest.raises(ValueError, match="expected \\(n, h, w\\)"):
        box_curves(grid[None], truth)
    with pytest.raises(ValueError, match="2 entries for 1 maps"):
        box_curves(grid, truth * 2)
    with pytest.raises(ValueError, match="x0 <= x1"):
        box_curves(grid, [np.array([[3, 0, 1, 1]])])
    with pytest.raises(ValueError, match="k >= 1"):
        box_curves(grid, [np.zeros((0, 4))])
    for bad in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match="maps\\[1\\] holds NaN or infinity"):
            box_curves(torch.cat([grid, grid + bad]), truth * 2)
    with pytest.raises(ValueError, match="spans"):
        box_curves(grid + 2, truth, normalisation="none")
    with pytest.raises(ValueError, match="'bench', expected one of"):
        box_curves(grid, truth, convention="bench")
