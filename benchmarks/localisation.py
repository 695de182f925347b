"""Speed of the localisation metrics beside the plain OpenCV / NumPy evaluation, on one thread.

    python benchmarks/localisation.py [--maps 20] [--repetitions 5] [--ilsvrc 50000] [--threads 2]

Repetitions of the two sides alternate; the figures are the best CPU time of each. The plain evaluation is the
tests' oracle, one contour search per threshold. Writes benchmarks/output/localisation.json.
"""

import argparse
import json
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
import oracle_localisation as oracle  # noqa: E402

from repro.metrics import MaxBoxAccV2, box_curves, pixel_histograms  # noqa: E402

SIDE = 224


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


def best_cpu_times(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of CPU per side, best of interleaved repetitions."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(repetitions):
        for name, side in sides.items():
            start = time.process_time()
            side()
            best[name] = min(best[name], time.process_time() - start)
    return best


def compare_boxes(kind: str, maps: int, repetitions: int) -> dict[str, object]:
    """MaxBoxAccV2's curves for one kind of map; the plain side sees a tenth of the maps."""
    rng = np.random.default_rng(0)
    scores = np.stack([draw_map(rng, kind) for _ in range(maps)])
    few = scores[: max(1, maps // 10)]
    truth = np.array([[30, 30, 149, 179]])
    stacked = torch.from_numpy(scores)
    seconds = best_cpu_times(
        {
            "plain": lambda: [oracle.best_iou_per_threshold(score, truth) for score in few],
            "ours": lambda: box_curves(stacked, [truth] * maps, normalisation="none"),
        },
        repetitions,
    )
    plain, ours = seconds["plain"] / len(few) * 1e3, seconds["ours"] / maps * 1e3
    return {"what": f"boxes, {kind} maps", "plain_ms": plain, "ours_ms": ours, "speed_up": plain / ours}


def compare_pixels(maps: int, repetitions: int) -> dict[str, object]:
    """PxAP's histograms from maps already in [0, 1]."""
    rng = np.random.default_rng(1)
    scores = np.stack([draw_map(rng, "cam") for _ in range(maps)])
    masks = rng.choice([0, 1, 255], scores.shape, p=[0.6, 0.35, 0.05]).astype(np.uint8)
    stacked, labels = torch.from_numpy(scores), torch.from_numpy(masks)
    seconds = best_cpu_times(
        {
            "plain": lambda: [oracle.pixel_histograms(s, m) for s, m in zip(scores, masks, strict=True)],
            "ours": lambda: pixel_histograms(stacked, labels, normalisation="none"),
        },
        repetitions,
    )
    plain, ours = seconds["plain"] / maps * 1e3, seconds["ours"] / maps * 1e3
    return {"what": "PxAP histograms", "plain_ms": plain, "ours_ms": ours, "speed_up": plain / ours}


def evaluate_many(count: int, threads: int) -> dict[str, object]:
    """Wall time and peak memory of MaxBoxAccV2 on `count` stored 14 x 14 float32 maps."""
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
    return {"maps": count, "threads": threads, "wall_seconds": seconds, "peak_rss_mib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ilsvrc", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warm = torch.rand(1, 14, 14)
    box_curves(warm, [np.array([[0, 0, 5, 5]])])
    pixel_histograms(warm, torch.ones(1, 14, 14, dtype=torch.uint8))
    rows = [compare_boxes(kind, options.maps, options.repetitions) for kind in ("cam", "cubic", "noisy")]
    rows.append(compare_pixels(options.maps, options.repetitions))
    for row in rows:
        times = f"plain {row['plain_ms']:9.2f} ms   ours {row['ours_ms']:7.2f} ms   {row['speed_up']:6.1f}x"
        print(f"{row['what']:<20} {times}", flush=True)
    many = evaluate_many(options.ilsvrc, options.threads)
    print(
        f"{many['maps']} maps, {many['threads']} threads: {many['wall_seconds']:.0f} s,"
        f" peak {many['peak_rss_mib']:.0f} MiB"
    )
    target = ROOT / "benchmarks" / "output" / "localisation.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    versions = {"opencv": cv2.__version__, "numpy": np.__version__, "torch": torch.__version__}
    target.write_text(json.dumps({"comparisons": rows, "many": many, "versions": versions}, indent=2) + "\n")


if __name__ == "__main__":
    main()
