"""What the intervals of `repro.evidence.statistics` cover and how often null claims are decided, on shapes of records.

`python benchmarks/coverage.py` prints the tables of `docs/statistics.md` (three minutes on one core); `--simulations`
makes them sharper or faster. Populations are values per image of committed records: samples of n images are
drawn from one, and the interval is asked whether it holds the population's mean. Everything goes through the very
functions that production calls.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from repro.evidence.decisions import Region, Verdict, decide
from repro.evidence.statistics import (
    Estimate,
    image_interval,
    mean_interval,
    paired_interval,
    pooled_variance,
    two_level_interval,
    unpaired_interval,
)

REPORTS = Path(__file__).parents[1] / "reports" / "quick"
IMAGES = (30, 50, 100, 200, 500)
SEEDS = (3, 5, 10)
PARTS = (1, 4, 6, 12, 18, 36, 72)
Floats = NDArray[np.float64]
Rng = np.random.Generator
Draw = Callable[[Rng, int], tuple[Estimate, float]]
"""One simulated study of a size: its interval, and the truth it should hold."""


@dataclass(frozen=True)
class Line:
    """One line of a table: the shape of the data, the interval, and its coverage (and refusals) per size."""

    data: str
    interval: str
    sizes: tuple[int, ...]
    covered: tuple[float, ...]
    refused: tuple[float, ...]
    """Share of studies in which the interval carries a doubt and decides nothing."""


@cache
def samples(table: str, key: str) -> Floats:
    """Values per image of one row of a committed record."""
    return np.asarray(json.loads((REPORTS / table / "result.json").read_text("utf-8"))["samples"][key])


def coverage(data: str, interval: str, sizes: tuple[int, ...], draw: Draw, simulations: int) -> Line:
    """How often `draw`'s interval holds its truth, for every size."""
    covered, refused = [], []
    for size in sizes:
        rng = np.random.default_rng(size)
        found = [draw(rng, size) for _ in range(simulations)]
        covered.append(float(np.mean([estimate.contains(truth) for estimate, truth in found])))
        refused.append(float(np.mean([bool(estimate.doubt) for estimate, _ in found])))
    return Line(data, interval, sizes, tuple(covered), tuple(refused))


# Over the images of one network.

_VGG, _VIT = "scorecampp/table4_imagenet_vgg19", "scorecampp/table8_vit"
_PETS, _WSOL = "scorecampp/table2_pets_vgg19", "ega/table2_ilsvrc"
MEANS = {
    "Average Drop, ScoreCAM++ on VGG-19 (skewness 3.9)": (_VGG, "scorecampp|average_drop|0", None),
    "Average Drop, Score-CAM on VGG-19 (2.6)": (_VGG, "scorecam|average_drop|0", None),
    "deletion AUC, Score-CAM on ViT (3.0)": (_VIT, "scorecam|deletion_auc|0", None),
    "Win with split ties, LayerCAM on VGG-19 (5.1)": (_VGG, "layercam|win|0", None),
    "Win with split ties, Grad-CAM on VGG-19 (2.8)": (_VGG, "gradcam|win|0", None),
    "difference in Average Drop, ScoreCAM++ − Score-CAM": (
        _VGG,
        "scorecampp|average_drop|0",
        "scorecam|average_drop|0",
    ),
    "difference in Average Drop, ScoreCAM++ − LayerCAM": (_VIT, "scorecampp|average_drop|0", "layercam|average_drop|0"),
    "logit drop with one outlier (13)": (_PETS, "scorecampp|average_drop|0|score_space=logit", None),
}
HITS = {
    "hit rate 61 %": (_WSOL, "cam|top1_cls_error|0|network=vgg16", None),
    "increase in confidence 9 %": (_VIT, "gradcam|increase_in_confidence|0", None),
    "two networks, classification": (_WSOL, "ega|top1_cls_error|0|network=vgg16", "cam|top1_cls_error|0|network=vgg16"),
    "two networks, localisation": (_WSOL, "ega|top1_loc_error|0|network=vgg16", "adl|top1_loc_error|0|network=vgg16"),
}


def _image_draw(table: str, first: str, second: str | None, binary: bool) -> Draw:
    one = samples(table, first)
    other = None if second is None else samples(table, second)
    truth = float(one.mean() if other is None else (one - other).mean())

    def draw(rng: Rng, n: int) -> tuple[Estimate, float]:
        chosen = rng.integers(0, len(one), n)
        if other is not None:
            return paired_interval(one[chosen], other[chosen], over="images"), truth
        return image_interval(one[chosen], bounds=(0.0, 100.0) if binary else None), truth

    return draw


def rare_discordance(rng: Rng, n: int) -> tuple[Estimate, float]:
    """Two methods that disagree on 9 % of the images, 6 % for the one and 3 % for the other."""
    kind = rng.choice(3, n, p=[0.06, 0.03, 0.91])
    hits = np.repeat(rng.random(n)[:, None] < 0.5, 2, axis=1)
    hits[kind == 0], hits[kind == 1] = [True, False], [False, True]
    return paired_interval(100.0 * hits[:, 0], 100.0 * hits[:, 1], over="images"), 3.0


def image_lines(simulations: int) -> Iterator[Line]:
    """Every interval over the images of one network."""
    for name, (table, first, second) in MEANS.items():
        draw = _image_draw(table, first, second, binary=False)
        yield coverage(name, "skewness-corrected t", IMAGES, draw, simulations)
    for name, (table, first, second) in HITS.items():
        draw = _image_draw(table, first, second, binary=True)
        yield coverage(name, "Wilson score" if second is None else "Tango score", IMAGES, draw, simulations)
    yield coverage("two methods that disagree on 9 %", "Tango score", IMAGES, rare_discordance, simulations)


# Over seeds, and over seeds and images.


def _normal(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    return mean_interval(rng.normal(70, 2, seeds)), 70.0


def _skewed(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    return mean_interval(rng.lognormal(0, 0.5, seeds)), math.exp(0.125)


def _near_ceiling(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    return mean_interval(rng.binomial(1000, rng.beta(490, 10, seeds)) / 10), 98.0


def _welch(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    return unpaired_interval(rng.normal(71, 1, seeds), rng.normal(70, 2, seeds)), 1.0


def pooled_draw(deviations: Floats, own: bool = False) -> Draw:
    """First minus last of 13 methods whose method × seed effects have these standard deviations."""

    def draw(rng: Rng, seeds: int) -> tuple[Estimate, float]:
        table = rng.normal(size=(13, seeds)) * deviations[:, None] + 3 * rng.normal(size=seeds)
        return paired_interval(table[0], table[-1], pooled=None if own else pooled_variance(table)), 0.0

    return draw


def real_residuals(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    """As above, with what is left of method and seed in Table 2's classification errors as the effects."""
    table = rng.choice(_residuals(), (13, seeds))
    return paired_interval(table[0], table[-1], pooled=pooled_variance(table)), 0.0


@cache
def _residuals() -> Floats:
    record = json.loads((REPORTS / _WSOL / "result.json").read_text("utf-8"))
    rows = [r for r in record["rows"] if r["metric"] == "top1_cls_error" and r["setting"] == {"network": "vgg16"}]
    methods = sorted({row["method"] for row in rows})
    values = np.array(
        [[r["value"] for r in rows if r["method"] == m and r["seed"] == s] for m in methods for s in range(3)]
    )
    table = values.reshape(len(methods), 3)
    table = table - table.mean(axis=1, keepdims=True)
    return (table - table.mean(axis=0)).ravel()


@dataclass(frozen=True)
class Crossed:
    """Standard deviations of seed, image and remaining effects of a seeds × images design with mean 0."""

    seed: float
    image: float
    rest: float
    images: int

    def __call__(self, rng: Rng, seeds: int) -> tuple[Estimate, float]:
        """One study."""
        values = self.seed * rng.normal(size=(seeds, 1)) + self.rest * rng.normal(size=(seeds, self.images))
        return two_level_interval(values + self.image * rng.normal(size=(1, self.images))), 0.0


def hits_of_networks(rng: Rng, seeds: int) -> tuple[Estimate, float]:
    """Hits of networks whose quality varies by seed (±2 points) and images of unequal difficulty, 200 images."""
    chance = rng.beta(2, 2, 200)[None] + 0.02 * rng.normal(size=(seeds, 1))
    return two_level_interval(100.0 * (rng.random((seeds, 200)) < chance)), 50.0


def seed_lines(simulations: int) -> Iterator[Line]:
    """Every interval over seeds."""
    equal, thirds = np.ones(13), np.where(np.arange(13) % 3 == 0, 2.0, 1.0)
    outlier = np.where(np.arange(13) == 0, 3.0, 1.0)
    cases: list[tuple[str, str, Draw]] = [
        ("normal", "Student t", _normal),
        ("accuracies near 98 %", "Student t", _near_ceiling),
        ("strongly skewed (log-normal, σ = 0.5)", "Student t", _skewed),
        ("two groups, unequal spreads", "Welch t", _welch),
        ("difference of 2 of 13 methods", "its own variance", pooled_draw(equal, own=True)),
        ("difference of 2 of 13 methods", "shared variance", pooled_draw(equal)),
        ("…, residuals of EGA's Table 2", "shared variance", real_residuals),
        ("…, a third of the methods twice as noisy, two of those", "shared variance", pooled_draw(thirds)),
        ("…, one method three times as noisy, that one", "shared variance", pooled_draw(outlier)),
        ("seeds dominate, 100 images", "Satterthwaite t", Crossed(1, 3, 3, 100)),
        ("seeds and images balanced, 100 images", "Satterthwaite t", Crossed(1, 10, 10, 100)),
        ("images dominate, 500 images", "Satterthwaite t", Crossed(0.1, 10, 3, 500)),
        ("pure noise, 100 images", "Satterthwaite t", Crossed(0, 0, 1, 100)),
        ("hits of networks, 200 images", "Satterthwaite t", hits_of_networks),
    ]
    for name, interval, draw in cases:
        yield coverage(name, interval, SEEDS, draw, simulations)


# How often a claim of k parts about equal methods is decided, each way.

Null = Callable[[Rng, int], list[Estimate]]
"""The comparisons of one claim of k parts between methods that are all equal."""


def null_seeds(rng: Rng, parts: int) -> list[Estimate]:
    """One method against k others in one column, three seeds."""
    table = rng.normal(size=(parts + 1, 3)) + rng.normal(size=3)
    pooled = pooled_variance(table)
    return [paired_interval(table[0], row, pooled=pooled) for row in table[1:]]


def null_trend(rng: Rng, parts: int) -> list[Estimate]:
    """A flat trend of k steps, three seeds."""
    table = rng.normal(size=(parts + 1, 3)) + rng.normal(size=3)
    pooled = pooled_variance(table)
    return [paired_interval(later, earlier, pooled=pooled) for earlier, later in pairwise(table)]


def null_hits(rng: Rng, parts: int) -> list[Estimate]:
    """One network against k others on 200 images, hits."""
    hits = 100.0 * (rng.random((parts + 1, 200)) < rng.beta(2, 2, 200))
    return [paired_interval(hits[0], row, over="images") for row in hits[1:]]


def null_drops(rng: Rng, parts: int) -> list[Estimate]:
    """k methods whose Average Drop is distributed alike, on 100 images."""
    population = samples(_VGG, "scorecam|average_drop|0")
    drops = rng.choice(population, (parts + 1, 100))
    return [paired_interval(drops[0], row, over="images") for row in drops[1:]]


NULLS: dict[str, Null] = {
    "one method against k, three seeds": null_seeds,
    "a flat trend of k steps, three seeds": null_trend,
    "one network against k, hits on 200 images": null_hits,
    "one map against k, Average Drop on 100 images": null_drops,
}
_WORST = (Verdict.contradicted, Verdict.inconclusive, Verdict.supported)


def null_rates(draw: Null, parts: int, simulations: int) -> tuple[float, float]:
    """Shares of null claims that are supported, and that are contradicted, by the production rule."""
    rng = np.random.default_rng(parts)
    verdicts = []
    for _ in range(simulations):
        found = draw(rng, parts)
        verdicts.append(min((decide(one, Region(0.0), parts) for one in found), key=_WORST.index))
    return verdicts.count(Verdict.supported) / simulations, verdicts.count(Verdict.contradicted) / simulations


def coverage_table(lines: list[Line]) -> str:
    """Markdown; in brackets, where it happens at all, how often the interval refuses to decide."""
    sizes = lines[0].sizes
    head = ["data", "interval", *(str(size) for size in sizes)]
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for line in lines:
        cells = [
            f"{100 * share:.1f}" + (f" ({100 * refused:.0f})" if refused else "")
            for share, refused in zip(line.covered, line.refused, strict=True)
        ]
        text.append(f"| {line.data} | {line.interval} | {' | '.join(cells)} |")
    return "\n".join(text)


def null_table(simulations: int) -> str:
    """Markdown: per null claim and k, the shares supported / contradicted."""
    text = [f"| claim | {' | '.join(f'k = {k}' for k in PARTS)} |", "|" + "---|" * (len(PARTS) + 1)]
    for name, draw in NULLS.items():
        rates = [null_rates(draw, parts, simulations) for parts in PARTS]
        text.append(f"| {name} | {' | '.join(f'{100 * s:.1f} / {100 * c:.1f}' for s, c in rates)} |")
    return "\n".join(text)


def main() -> None:
    """Print all three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--simulations", type=int, default=1000, help="per number")
    simulations = parser.parse_args().simulations
    print(coverage_table(list(image_lines(simulations))), end="\n\n")
    print(coverage_table(list(seed_lines(simulations))), end="\n\n")
    print(null_table(max(simulations // 2, 10)), flush=True)


if __name__ == "__main__":
    main()
