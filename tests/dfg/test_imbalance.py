"""The step-imbalance protocol and its metrics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy

from repro.data.imbalance import held_out_split, majority_combinations, step_imbalance
from repro.metrics.classification import confusion_counts, macro_recall, top1_accuracy

LABELS = torch.arange(1000) % 10


@given(st.sets(st.integers(0, 9), min_size=1, max_size=9), st.integers(10, 100), st.integers(0, 5))
def test_counts_are_as_asked_and_indices_are_distinct(majority: set[int], n_max: int, seed: int) -> None:
    chosen = step_imbalance(LABELS, sorted(majority), n_max, 10.0, seed)
    expected = [n_max if c in majority else round(n_max / 10) for c in range(10)]
    assert chosen.counts.tolist() == expected == torch.bincount(LABELS[chosen.indices], minlength=10).tolist()
    assert len(chosen.indices.unique()) == len(chosen.indices)
    assert chosen.short == ()


def test_a_class_with_slightly_too_few_images_is_named_and_with_far_too_few_refused() -> None:
    labels = torch.cat([torch.zeros(50), torch.ones(37)]).long()
    chosen = step_imbalance(labels, [0, 1], 40, 10.0, seed=0)
    assert chosen.counts.tolist() == [40, 37]
    assert chosen.short == (1,)
    with pytest.raises(ValueError, match="class 1 has 37 images, n_max=50 with ratio=10.0 asks for 50"):
        step_imbalance(labels, [0, 1], 50, 10.0, seed=0)


def test_minority_images_are_among_the_majority_images_of_the_same_seed() -> None:
    as_majority = step_imbalance(LABELS, [3, 4], 100, 10.0, seed=1).indices
    as_minority = step_imbalance(LABELS, [5, 6], 100, 10.0, seed=1).indices
    small = as_minority[LABELS[as_minority] == 3]
    assert torch.isin(small, as_majority).all()
    assert not torch.equal(small, step_imbalance(LABELS, [5, 6], 100, 10.0, seed=2).indices[:10])


@pytest.mark.parametrize(
    ("majority", "n_max", "ratio", "message"),
    [
        ([0, 0], 10, 2.0, "distinct"),
        ([10], 10, 2.0, "within"),
        ([0], 10, 0.5, "at least 1"),
        ([0], 10, 40.0, "leaves 0"),
    ],
)
def test_bad_requests_are_refused(majority: list[int], n_max: int, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_imbalance(LABELS, majority, n_max, ratio, 0)


def test_there_are_45_and_45_combinations_and_draws_are_distinct() -> None:
    assert [len(set(majority_combinations(10, mu))) for mu in (2, 8)] == [45, 45]
    drawn = majority_combinations(101, 51, limit=10, seed=3)
    assert len(set(drawn)) == 10 and all(len(set(c)) == 51 for c in drawn)
    assert drawn == majority_combinations(101, 51, limit=10, seed=3)
    with pytest.raises(ValueError, match="limit"):
        majority_combinations(101, 51)


def test_held_out_images_are_apart_and_from_every_class() -> None:
    chosen = step_imbalance(LABELS, [0, 1], 100, 20.0, seed=0).indices
    kept, held = held_out_split(chosen, LABELS, 0.1, seed=0)
    assert torch.equal(torch.cat([kept, held]).sort().values, chosen)
    assert torch.bincount(LABELS[held], minlength=10).tolist() == [10, 10] + [1] * 8
    assert len(held_out_split(chosen, LABELS, 0.0, seed=0)[1]) == 0


def test_metrics_equal_torchmetrics() -> None:
    labels = torch.randint(4, (200,))
    predictions = torch.where(torch.rand(3, 200) < 0.6, labels, torch.randint(4, (3, 200)))
    confusion = confusion_counts(predictions, labels, 4)
    for r in range(3):
        for metric, average in ((top1_accuracy, "micro"), (macro_recall, "macro")):
            expected = 100 * MulticlassAccuracy(num_classes=4, average=average)(predictions[r], labels)
            assert torch.allclose(metric(confusion)[r], expected, atol=1e-4)


def test_macro_recall_sees_what_accuracy_hides() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    confusion = confusion_counts(torch.zeros(100, dtype=torch.long), labels, 3)
    assert top1_accuracy(confusion).item() == pytest.approx(90)
    assert macro_recall(confusion).item() == pytest.approx(50)
