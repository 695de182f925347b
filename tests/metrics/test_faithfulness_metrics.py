"""Average Drop, Increase in Confidence, Win %, Average Drop in Logit: hand-computed, signs, ties, merging."""

import pytest
import torch

from repro.metrics import AverageDrop, AverageLogitDrop, IncreaseInConfidence, MeanMapArea, WinRate


def _fill(metric, *updates):
    for update in updates:
        metric.update(*(torch.tensor(part) for part in update))
    return metric


def test_average_drop_is_hand_computed() -> None:
    # drops: (0.8 - 0.6)/0.8 = 25 %, a rise counts 0, (0.5 - 0)/0.5 = 100 %
    metric = _fill(AverageDrop(), ([0.8, 0.4], [0.6, 0.9]), ([0.5], [0.0]))
    assert metric.values().tolist() == pytest.approx([25, 0, 100])
    assert metric.compute().item() == pytest.approx(125 / 3)


def test_average_drop_of_a_score_that_is_not_positive_is_undefined_and_counted() -> None:
    metric = _fill(AverageDrop(), ([2.0, -1.0, 0.0], [1.0, -2.0, -3.0]))
    assert metric.undefined() == 2
    assert metric.compute().item() == pytest.approx(50)


def test_increase_is_strict() -> None:
    metric = _fill(IncreaseInConfidence(), ([0.5, 0.5, 0.5, 0.2], [0.5, 0.6, 0.4, 0.3]))
    assert metric.values().tolist() == [0, 100, 0, 100]
    assert metric.compute().item() == 50


def test_logit_drop_keeps_its_sign() -> None:
    metric = _fill(AverageLogitDrop(), ([10.0, 2.0], [4.0, 3.0]))
    assert metric.values().tolist() == [6, -1]
    assert metric.compute().item() == 2.5


def test_a_more_faithful_map_moves_every_metric_the_better_way() -> None:
    whole, worse, better = torch.tensor([0.6, 0.7]), torch.tensor([0.2, 0.3]), torch.tensor([0.5, 0.8])
    for metric_type in (AverageDrop, IncreaseInConfidence):
        results = []
        for masked in (worse, better):
            metric = metric_type()
            metric.update(whole, masked)
            results.append(metric.compute().item())
        assert (results[1] > results[0]) == metric_type.higher_is_better
    win = WinRate()
    win.update(torch.stack((worse, better), dim=1))
    assert win.compute().tolist() == [0, 100]


def test_win_ties_are_split_or_go_to_the_first() -> None:
    scores = [[0.5, 0.7, 0.7], [0.9, 0.1, 0.2], [0.3, 0.3, 0.3]]
    split = _fill(WinRate(), (scores,))
    assert split.values()[0].tolist() == [0, 50, 50]
    assert split.compute().tolist() == pytest.approx([(0 + 100 + 100 / 3) / 3, (50 + 100 / 3) / 3, (50 + 100 / 3) / 3])
    first = _fill(WinRate(ties="first"), (scores,))
    assert first.compute().tolist() == pytest.approx([200 / 3, 100 / 3, 0])


def test_rounding_does_not_decide_a_win() -> None:
    # Two ways to compute one map: on 10 images each is ahead by rounding alone, which `first` mistakes for wins.
    torch.manual_seed(0)
    score = torch.rand(10, 1) * 20
    scores = torch.cat((score, score + 1e-6 * torch.randn(10, 1)), dim=1)
    split = WinRate()
    split.update(scores)
    assert split.compute().tolist() == [50, 50]


@pytest.mark.parametrize("metric_type", [AverageDrop, IncreaseInConfidence, AverageLogitDrop])
def test_processes_merge_by_concatenation(metric_type) -> None:
    whole, masked = torch.rand(7) + 0.1, torch.rand(7)
    everything, left, right = metric_type(), metric_type(), metric_type()
    everything.update(whole, masked)
    left.update(whole[:3], masked[:3])
    right.update(whole[3:], masked[3:])
    left.merge_state(right)
    assert torch.equal(left.values().sort().values, everything.values().sort().values)
    torch.testing.assert_close(left.compute(), everything.compute())


def test_reset_and_nothing_seen() -> None:
    metric = MeanMapArea()
    metric.update(torch.tensor([0.25, 0.75]))
    assert metric.compute().item() == 0.5
    metric.reset()
    with pytest.raises(ValueError, match="no image seen"):
        metric.compute()


def test_bad_input_is_named() -> None:
    # By the type checker where the session runs with one, by the metric itself elsewhere.
    with pytest.raises((ValueError, TypeError)):
        AverageDrop().update(torch.rand(3), torch.rand(3, 2))
    with pytest.raises((ValueError, TypeError), match="split"):
        WinRate(ties="random")
