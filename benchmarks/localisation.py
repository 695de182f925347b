"""Speed of the localisation metrics beside the plain OpenCV / NumPy evaluation and beside a prototype, on one thread.

    python benchmarks/localisation.py [--maps 20] [--repetitions 5] [--ilsvrc 50000] [--threads 2]

Repetitions of the sides alternate; medians of the CPU time of each and of their ratios are reported. The plain
evaluation is the tests' oracle, one contour search per threshold. The prototype computes the rule of all contours,
ours all three rules. Writes benchmarks/results/localisation.json (`--quick`: a trial, into output/).
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "metrics"))
import max_box_prototype as prototype  # noqa: E402
import oracle_localisation as oracle  # noqa: E402
from speed_record import Comparison, SpeedRecord, compared, environment  # noqa: E402

from repro.metrics import MaxBoxAccV2, box_curves, pixel_histograms  # noqa: E402

SIDE = 224
BARS = {"cam": 15.0, "cubic": 15.0, "noisy": 80.0}
PIXEL_BAR, SECONDS_BAR, MEMORY_BAR = 10.0, 240.0, 2048.0
PROTOTYPE_BAR = 1.3


def draw_map(rng: np.random.Generator, kind: str) -> np.ndarray:
    """One 224 x 224 map in [0, 1]: a bump (`cam`), random logits (`cubic`), or those with pixel noise."""
    base = rng.standard_normal((14, 14))
    if kind == "cam":
        y, x = np.mgrid[:14, :14]
        center, spread = rng.uniform(3, 11, 2), rng.uniform(1.5, 4)
        base = 0.1 * base + np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * spread**2))
    score = oracle.normalised(base, SIDE)
    if kind == "noisy":
        score = oracle.normalised(score + 0.3 * rng.standard_normal(score.shape), SIDE)
    return score


def cpu_times(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of CPU per side and repetition; the sides take turns."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            start = time.process_time()
            side()
            spent[name].append(time.process_time() - start)
    return spent


def compare_boxes(kind: str, maps: int, repetitions: int) -> list[Comparison]:
    """MaxBoxAccV2's curves for one kind of map; the plain side sees a tenth of the maps."""
    rng = np.random.default_rng(0)
    scores = np.stack([draw_map(rng, kind) for _ in range(maps)])
    few = scores[: max(1, maps // 10)]
    truth = np.array([[30, 30, 149, 179]])
    stacked = torch.from_numpy(scores)
    seconds = cpu_times(
        {
            "plain": lambda: [oracle.best_iou_per_threshold(score, truth) for score in few],
            "prototype": lambda: [prototype.best_iou_per_threshold(s, truth, oracle.THRESHOLDS) for s in scores],
            "ours": lambda: box_curves(stacked, [truth] * maps, normalisation="none"),
        },
        repetitions,
    )
    name = f"boxes at all thresholds, {kind} maps {SIDE}×{SIDE}"
    beside_prototype = compared(
        f"{name}: three rules beside one",
        [1e3 * spent / maps for spent in seconds["ours"]],
        [1e3 * spent / maps for spent in seconds["prototype"]],
        "component prototype",
        unit="ms CPU per map",
        threads=1,
        ratio_is="ours / peer",
        bar=PROTOTYPE_BAR,
    )
    return [per_map(name, seconds, maps, len(few), BARS[kind]), beside_prototype]


def compare_pixels(maps: int, repetitions: int) -> Comparison:
    """PxAP's histograms from maps already in [0, 1]."""
    rng = np.random.default_rng(1)
    scores = np.stack([draw_map(rng, "cam") for _ in range(maps)])
    masks = rng.choice([0, 1, 255], scores.shape, p=[0.6, 0.35, 0.05]).astype(np.uint8)
    stacked, labels = torch.from_numpy(scores), torch.from_numpy(masks)
    seconds = cpu_times(
        {
            "plain": lambda: [oracle.pixel_histograms(s, m) for s, m in zip(scores, masks, strict=True)],
            "ours": lambda: pixel_histograms(stacked, labels, normalisation="none"),
        },
        repetitions,
    )
    return per_map("PxAP histograms", seconds, maps, maps, PIXEL_BAR)


def per_map(name: str, seconds: dict[str, list[float]], ours: int, plain: int, bar: float) -> Comparison:
    """Milliseconds of CPU per map, from the seconds of `ours` and of `plain` maps."""
    return compared(
        name,
        [1e3 * spent / ours for spent in seconds["ours"]],
        [1e3 * spent / plain for spent in seconds["plain"]],
        "plain OpenCV / NumPy",
        unit="ms CPU per map",
        threads=1,
        bar=bar,
    )


def evaluate_many(count: int, threads: int) -> list[Comparison]:
    """Wall time and peak memory of MaxBoxAccV2 on `count` stored 14 x 14 float32 maps, against fixed limits."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:14, :14]
    centers = rng.uniform(3, 11, (count, 2, 1, 1)).astype(np.float32)
    bumps = np.exp(-((x - centers[:, 0]) ** 2 + (y - centers[:, 1]) ** 2) / 18).astype(np.float32)
    stored = torch.from_numpy(bumps + 0.1 * rng.standard_normal(bumps.shape, dtype=np.float32))
    truth = [np.array([[30, 30, 149, 179]])] * count
    start = time.perf_counter()
    metric = MaxBoxAccV2()
    metric.update(box_curves(stored, truth, threads=threads))
    metric.compute()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = f"MaxBoxAccV2 of {count:,} stored 14×14 maps"
    return [
        compared(f"{name}: {what}", [found], None, "limit", unit=unit, threads=threads, ratio_is="ours", bar=bar)
        for what, found, unit, bar in (
            ("wall time", seconds, "s", SECONDS_BAR),
            ("peak memory of the process", peak, "MiB", MEMORY_BAR),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ilsvrc", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two maps, one repetition: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.maps, options.repetitions, options.ilsvrc = 2, 1, 20
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warm = torch.rand(1, 14, 14)
    box_curves(warm, [np.array([[0, 0, 5, 5]])])
    pixel_histograms(warm, torch.ones(1, 14, 14, dtype=torch.uint8))
    prototype.best_iou_per_threshold(np.zeros((8, 8)), np.array([[0, 0, 5, 5]]), oracle.THRESHOLDS)
    rows = [row for kind in BARS for row in compare_boxes(kind, options.maps, options.repetitions)]
    rows.append(compare_pixels(options.maps, options.repetitions))
    rows += evaluate_many(options.ilsvrc, options.threads)
    for row in rows:
        plain = "" if row.peer is None else f"   peer {row.peer:9.2f}   {row.ratio_is} {row.ratio:6.2f}"
        print(f"{row.name:<62} {row.ours:9.2f} {row.unit}{plain}   met: {row.met}", flush=True)
    record = SpeedRecord(name="localisation", environment=environment(), comparisons=rows, details={})
    print(f"written: {record.save(quick=options.quick)}")


if __name__ == "__main__":
    main()
