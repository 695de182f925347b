"""The five claims of the quick preset whose verdicts rest on most, recomputed from the records by other code."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, stats

from repro.evidence.claims import load_claims
from repro.evidence.judgement import Judge
from repro.evidence.record import records_in
from repro.project import code_root

REPORTS = code_root() / "reports" / "quick"
WANTED = stats.norm.ppf(0.975)


def text_of(id):
    paper = id.partition(".")[0]
    entries = yaml.safe_load((code_root() / f"repro/evidence/claims/{paper}.yaml").read_text("utf-8"))["claims"]
    return next(entry for entry in entries if entry["id"] == id)


def paired_hits(one, other, scale):
    """Score interval of a paired difference, the nuisance parameter by maximising the likelihood numerically."""
    n, b, c = len(one), int((one > other).sum()), int((one < other).sum())

    def score(delta):
        def loss(q):
            return -(b * np.log(q + delta) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - delta))

        low, high = max(0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))

    middle = (b - c) / n
    low = optimize.brentq(lambda delta: score(delta) - WANTED, -0.999, middle)
    return [scale * low, scale * optimize.brentq(lambda delta: score(delta) + WANTED, middle, 0.999)]


def skewed_mean(values):
    """Hall's interval, his cubic solved numerically, with neither end inside Student's."""
    n, error, skewness = len(values), stats.sem(values), stats.skew(values)

    def transformed(truth):
        t = (values.mean() - truth) / error
        return t + skewness * t**2 / 3 / n**0.5 + skewness**2 * t**3 / 27 / n + skewness / 6 / n**0.5

    wanted, room = stats.t.ppf(0.975, n - 1), 20 * error
    inside = (values.mean() - room, values.mean() + room)
    low, high = (optimize.brentq(lambda truth, q=q: transformed(truth) - q, *inside) for q in (wanted, -wanted))
    return [min(low, values.mean() - wanted * error), max(high, values.mean() + wanted * error)]


@pytest.fixture(scope="module")
def judge():
    return Judge(records_in(REPORTS))


def judged(judge, id):
    return judge.claim(next(claim for claim in load_claims(id.partition(".")[0]) if claim.id == id))


@pytest.mark.parametrize("id", ["scorecampp.c09", "scorecampp.c17", "scorecampp.c18", "scorecampp.c15"])
def test_orderings_over_images(judge, id):
    entry = text_of(id)
    better, *rivals = [entry["test"]["better"], *entry["test"]["than"]]
    samples = json.loads((REPORTS / entry["table"] / "result.json").read_text("utf-8"))["samples"]
    found = judged(judge, id)
    intervals = {}
    for part in found.parts:
        first, second = part.requirement.cells
        intervals[first.method, second.method, first.metric] = [part.quantity.low, part.quantity.high]
    lows = []
    for metric, direction in entry["test"]["metrics"].items():
        for rival in rivals:
            names = (rival, better) if direction == "lower" else (better, rival)
            one, other = (np.array(samples[f"{name}|{metric}|0"]) for name in names)
            kinds = sorted(set(one) | set(other))
            ends = paired_hits(one, other, kinds[1] - kinds[0]) if len(kinds) == 2 else skewed_mean(one - other)
            assert intervals.pop((*names, metric)) == pytest.approx(ends, abs=1e-4)
            lows.append(ends[0])
    assert not intervals
    assert (found.judged == "supported") == (min(lows) > 0)


def test_a_direction_over_seeds(judge):
    """ega.c30a: HaS minus EGA in PxAP error on GoogLeNet, from all methods of the column."""
    rows = pd.DataFrame(json.loads((REPORTS / "ega/table3_openimages" / "result.json").read_text("utf-8"))["rows"])
    column = rows[(rows.metric == "pxap_error") & (rows.setting == {"network": "googlenet"})]
    table = column.pivot(index="method", columns="seed", values="value")
    rest = table.sub(table.mean(axis=1), axis=0).sub(table.mean() - table.to_numpy().mean(), axis=1)
    shared = 2 * (rest**2).to_numpy().sum() / (len(table) - 1) / 2
    difference = table.loc["has"] - table.loc["ega"]
    half = stats.t.ppf(0.975, 4) * math.sqrt((2 * difference.var() + 2 * shared) / 4 / 3)
    found = judged(judge, "ega.c30a")
    quantity = found.quantity
    assert [quantity.low, quantity.high] == pytest.approx([difference.mean() - half, difference.mean() + half])
    assert found.judged == "supported"
