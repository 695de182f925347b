"""Ranking: a real difference and a tie by hand, Holm over the pairs, letters, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats

from repro.evidence.statistics import paired_interval
from repro.report.plots import ranking_plot
from repro.studies.ega import EvaluatedTrial, Trial
from repro.studies.ega_findings import (
    Contrast,
    Ranking,
    contribution_sentences,
    rank,
    rank_columns,
    ranking_sentences,
)
from repro.studies.localised import Localised, MetricPolicy
from repro.training import RunResult

POLICY = MetricPolicy()
METRIC = "top1_cls_error"


def outcome(method: str, wrong: list[list[int]], reading: str | None = None, manifest: str = "m") -> EvaluatedTrial:
    """Errors of 40 images by seed: the listed images are misclassified."""
    found = []
    for seed, rows in enumerate(wrong):
        correct = torch.ones(40, dtype=torch.uint8)
        correct[rows] = 0
        found.append(Localised(RunResult("", {"correct": correct}, {}, [], 0.0, reused=False), "", seed))
    setting: dict[str, Any] = {"network": "vgg16"} | ({"reading": reading} if reading else {})
    trial = Trial(method, setting, cast(Any, None), cast(Any, None))
    study = SimpleNamespace(images=SimpleNamespace(test=SimpleNamespace(manifest=manifest)))
    return EvaluatedTrial(trial, cast(Any, study), found)


def three() -> list[EvaluatedTrial]:
    """cam and ega tie at about 10 %, acol fails on 97 of 160."""
    many = list(range(24))
    return [
        outcome("acol", [many, [*many, 30], [*many[:-1], 31], many]),
        outcome("cam", [[1, 2, 3, 4], [1, 2, 3], [2, 3, 4, 35], [1, 2, 3, 4]]),
        outcome("ega", [[1, 2, 3], [1, 2, 3, 36], [2, 3, 4], [1, 2, 37]]),
    ]


def test_a_real_difference_is_found_and_a_tie_is_not() -> None:
    ranking = rank(three(), METRIC, POLICY, "quick")
    assert ranking.methods == ("ega", "cam", "acol")
    assert [estimate.value for estimate in ranking.errors] == [8.125, 9.375, 60.625]
    assert {(pair.first, pair.second): pair.differs for pair in ranking.pairs} == {
        ("ega", "cam"): False,
        ("ega", "acol"): True,
        ("cam", "acol"): True,
    }
    assert ranking.letters() == ("a", "a", "b")
    assert ranking.rank_interval("ega") == (1, 2) and ranking.rank_interval("acol") == (3, 3)
    sentences = ranking_sentences(ranking)
    assert "ega 8.1, cam 9.4, acol 60.6" in sentences[0]
    assert "ega has a really lower error than acol." in sentences
    assert sentences[-1].startswith("EGA is number 1 of 3 by its mean") and "between 1 and 2" in sentences[-1]
    smoke = replace(ranking, preset="smoke")
    assert "decides nothing" in ranking_sentences(smoke)[-1] and smoke.letters() == ("", "", "")


def test_columns_are_ranked_apart_and_readings_left_out() -> None:
    others = [replace(one, trial=replace(one.trial, setting={"network": "googlenet"})) for one in three() if one.found]
    shared = outcome("ega", [[5], [5], [5], [6]], reading="shared_batch_norm")
    found = rank_columns([*three(), *others[:2], shared], METRIC, POLICY, "quick")
    assert {column: ranking.methods for column, ranking in found.items()} == {
        "vgg16": ("ega", "cam", "acol"),
        "googlenet": ("cam", "acol"),
    }
    assert rank_columns(three()[:1], METRIC, POLICY, "quick") == {}


def test_holm_is_applied_over_all_pairs() -> None:
    pairs = rank(three(), METRIC, POLICY, "quick").pairs
    smallest, middle, largest = sorted(pairs, key=lambda pair: pair.p)
    assert smallest.adjusted == pytest.approx(3 * smallest.p)
    assert middle.adjusted == pytest.approx(max(3 * smallest.p, 2 * middle.p))
    assert largest.adjusted == pytest.approx(max(middle.adjusted, largest.p))


@pytest.mark.parametrize("seed", range(20))
def test_p_is_below_five_per_cent_exactly_when_the_interval_excludes_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.normal(0.25, 1, (4, 30)) + rng.normal(0, 0.2, (4, 1))
    found = paired_interval(first, np.zeros((4, 30)), "seeds and images")
    assert (found.p_value() < 0.05) == (not found.contains(0))


def test_p_values_of_hand_made_differences() -> None:
    differences = np.array([1.0, 2.0, 3.0])  # mean 2, standard error 1/√3
    expected = 2 * stats.t.sf(2 * np.sqrt(3), 2)
    assert paired_interval(differences, np.zeros(3)).p_value() == pytest.approx(expected)
    constant = differences[:, None].repeat(5, axis=1)  # images agree: the seeds alone decide
    assert paired_interval(constant, np.zeros((3, 5)), "seeds and images").p_value() == pytest.approx(expected)
    assert paired_interval(np.ones((2, 3)), np.zeros((2, 3)), "seeds and images").p_value() == 1


def test_letters_of_a_chain_that_only_differs_at_its_ends() -> None:
    same = rank(three(), METRIC, POLICY, "quick")
    pairs = [
        Contrast("", first, second, same.errors[0], 0.0, 0.01 if (first, second) == ("a", "d") else 0.5)
        for first, second in [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    ]
    ranking = Ranking(METRIC, "quick", ("a", "b", "c", "d"), same.errors[:1] * 4, tuple(pairs))
    assert ranking.letters() == ("a", "ab", "ab", "b")
    assert [ranking.rank_interval(method) for method in "abcd"] == [(1, 3), (1, 4), (1, 4), (2, 4)]
    figure = ranking_plot(dict(zip("abcd", ranking.errors, strict=True)), ranking.letters(), "error (%)", "Ranks")
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "ab", "ab", "b"]


def test_what_each_part_adds_is_said_for_the_parts_that_were_run() -> None:
    acol, cam, ega = three()
    adversarial = replace(acol, trial=replace(acol.trial, method="cam_adversarial"))
    shared = outcome("ega", [[5], [5, 6], [5], [6]], reading="shared_batch_norm")
    sentences = contribution_sentences([cam, adversarial, ega, shared], METRIC, POLICY, "quick", network="vgg16")
    assert len(sentences) == 4
    assert sentences[0].startswith("Adversarial examples with dual batch norm, over plain CAM: raises the error.")
    assert "changes by +51.2 points" in sentences[0] and "correction for 4)" in sentences[0]
    assert "lowers the error" in sentences[2]
    assert len(contribution_sentences([cam, ega], METRIC, POLICY, "smoke")) == 1
    assert contribution_sentences([acol], METRIC, POLICY, "quick") == []


def test_what_cannot_be_compared_is_refused() -> None:
    acol, cam, _ = three()
    with pytest.raises(ValueError, match="different methods"):
        rank([cam, cam], METRIC, POLICY, "quick")
    with pytest.raises(ValueError, match="other seeds"):
        rank([cam, replace(acol, found=acol.found[:2])], METRIC, POLICY, "quick")
    with pytest.raises(ValueError, match="other images"):
        rank([cam, outcome("ega", [[1]] * 4, manifest="other")], METRIC, POLICY, "quick")
