"""PxAP against NumPy histograms and by hand; ten-crop scores and class errors."""

import numpy as np
import oracle_localisation as oracle
import pytest
import torch

from repro.metrics import (
    ClassificationError,
    PxAP,
    average_precision,
    combine_masks,
    pixel_histograms,
    ten_crop_scores,
    top_k_correct,
)


def test_histograms_equal_numpy_on_and_beside_every_edge():
    edges = np.append(oracle.THRESHOLDS, 1.0)
    scores = np.concatenate([edges, np.nextafter(edges, 2)[:-1], np.nextafter(edges, -1)[1:], np.zeros(22)])
    scores = np.resize(scores, (2, 56, 56))
    masks = np.random.default_rng(0).choice([0, 1, 255], scores.shape)
    counts = pixel_histograms(torch.from_numpy(scores), torch.from_numpy(masks), normalisation="none")
    for i in range(2):
        assert np.array_equal(counts[i].numpy(), oracle.pixel_histograms(scores[i], masks[i]))


def test_pxap_equals_numpy_from_stored_maps():
    rng = np.random.default_rng(3)
    stored = rng.standard_normal((12, 7, 7)).astype(np.float32)
    masks = rng.choice([0, 1, 255], (12, 64, 64), p=[0.6, 0.3, 0.1])
    plain = [oracle.pixel_histograms(oracle.normalised(c, 64), m) for c, m in zip(stored, masks, strict=True)]
    whole, parts = PxAP(), PxAP()
    whole.update(torch.from_numpy(stored), torch.from_numpy(masks))
    for shard in (slice(0, 5), slice(5, 12)):
        parts.update(torch.from_numpy(stored[shard]), torch.from_numpy(masks[shard]))
    assert whole.compute() == parts.compute() == pytest.approx(oracle.pxap(sum(plain)), abs=1e-12)


def test_pxap_by_hand_and_ignored_pixels():
    """Scores .9 (object), .8 (background), .7 (object): 1/2 · 1 + 1/2 · 2/3; the ignored 1.0 is out."""
    scores = torch.tensor([[[0.9, 0.8], [0.7, 1.0]]], dtype=torch.float64)
    masks = torch.tensor([[[1, 0], [1, 255]]])
    value = average_precision(pixel_histograms(scores, masks, normalisation="none")[0])
    assert value == pytest.approx(100 * (1 / 2 + 1 / 3))
    metric = PxAP(correct_only=True)
    both = torch.cat([scores, 1 - scores])
    metric.update(both, masks.repeat(2, 1, 1), torch.tensor([True, False]))
    alone = PxAP()
    alone.update(scores, masks)
    assert metric.compute() == alone.compute()


@pytest.mark.usefixtures("unchecked")
def test_bad_masks_are_named():
    scores = torch.rand(1, 4, 4)
    with pytest.raises(ValueError, match="other than 0, 1 and 255"):
        pixel_histograms(scores, torch.full((1, 4, 4), 2))
    with pytest.raises(ValueError, match="masks span"):
        pixel_histograms(scores, torch.full((1, 4, 4), 256))
    with pytest.raises(ValueError, match="expected \\(1, side, side\\)"):
        pixel_histograms(scores, torch.zeros(1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="no foreground"):
        average_precision(torch.zeros(2, 1002, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs correct"):
        PxAP(correct_only=True).update(scores, torch.zeros(1, 4, 4, dtype=torch.int64))


def test_foreground_wins_over_ignore():
    first, second = np.eye(4), np.zeros((2, 2))
    second[0, 1] = 1
    combined = combine_masks([first, second], np.ones((4, 4)), side=4)
    assert combined.tolist() == [[1, 255, 1, 1], [255, 1, 1, 1], [255, 255, 1, 255], [255, 255, 255, 1]]


def test_ten_crop_averages_softmax_over_the_ten_crops():
    image = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)

    def classify(crop: torch.Tensor) -> torch.Tensor:
        return torch.stack([crop[:, 0, 0, 0], torch.zeros(len(crop))], dim=1)

    corners = torch.tensor([0.0, 2, 8, 10, 5, 1, 3, 9, 11, 6])  # first pixel of each crop, then of its mirror
    expected = torch.sigmoid(corners).mean()
    assert ten_crop_scores(classify, image, size=2)[0, 0] == pytest.approx(float(expected))
    assert ten_crop_scores(classify, image, size=2, average="logit")[0, 0] == pytest.approx(5.5)
    with pytest.raises(ValueError, match="at least 8 x 8"):
        ten_crop_scores(classify, image, size=8)


def test_class_errors_and_top_k_agree():
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    target = torch.tensor([0, 1, 2, 2])
    assert top_k_correct(scores, target).tolist() == [True, False, False, True]
    for k, error in ((1, 50.0), (2, 25.0)):
        metric = ClassificationError(3, top_k=k)
        metric.update(scores, target)
        assert float(metric.compute()) == error
        assert float(100 * (~top_k_correct(scores, target, k)).float().mean()) == error
    with pytest.raises(ValueError, match="number of classes"):
        top_k_correct(scores, target, 4)
    scores[2, 1] = torch.nan
    with pytest.raises(ValueError, match="scores\\[2\\] holds NaN"):
        top_k_correct(scores, target)
