"""Best box overlap of a localisation map at every threshold, from one pass over the map; choice of the threshold.

Every localisation number of the field – MaxBoxAcc V1 and V2, GT-known, CorLoc, Top-1 Loc, for any threshold
policy and any IoU – is arithmetic on what `box_curves` returns. "Benchmark" is Choe et al., Evaluating weakly
supervised object localization methods right, CVPR 2020.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from repro.metrics.max_tree import N_COLUMNS, level_curves

Convention = Literal["benchmark", "clean"]
"""`benchmark`: integer boxes with inclusive corners, one pixel too wide at the far sides, as the benchmark computes
them. `clean`: exact half-open boxes, an empty mask overlaps nothing. Both quantise maps to 256 levels."""
Normalisation = Literal["minmax", "max", "none"]
"""`minmax`: lowest value 0, highest 1. `max`: negatives 0, highest 1. `none`: the map is already in [0, 1]."""
BoxRule = Literal["all", "largest", "union"]
"""Predicted boxes of a mask: one per contour; the contour of largest area; one around the whole mask."""
Comparison = Literal[">", ">="]
BOX_RULES: tuple[BoxRule, ...] = get_args(BoxRule)
SIDE = 224
_CHUNK = 32


@dataclass(frozen=True)
class BoxCurves:
    """Best IoU (0..1) per map, box rule and grey level.

    Attributes:
        iou: rows in the order of `BOX_RULES`; column L + 1 for the mask `{v > L}`, v the map in 0 … 255; column 0 is
            the whole image.
        peaks: the highest v of each map: 255, or 0 for constant maps, unless the maps were not normalised.
    """

    iou: Float[Tensor, "n 3 257"]
    peaks: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.peaks)

    def matrix(self, rule: BoxRule = "all", comparison: Comparison = ">") -> Float[Tensor, "n 256"]:
        """Best IoU at levels 0 … 255 for one box rule; `>=` keeps pixels equal to the level as well."""
        _check("rule", rule, BOX_RULES)
        _check("comparison", comparison, get_args(Comparison))
        columns = slice(1, None) if comparison == ">" else slice(0, 256)
        return self.iou[:, BOX_RULES.index(rule), columns]


def box_curves(
    maps: Float[Tensor, "n h w"],
    boxes: Sequence[np.ndarray],
    *,
    convention: Convention = "benchmark",
    holes: bool | None = None,
    normalisation: Normalisation = "minmax",
    side: int | None = SIDE,
    threads: int = 1,
) -> BoxCurves:
    """max over predicted and true boxes of IoU = |P ∩ T| / |P ∪ T|, at each of 256 levels of n maps (benchmark, §3.3).

    Args:
        maps: of any resolution; enlarged to `side` x `side` (cubic; None: left as they are), normalised and quantised
            like the benchmark does, a few at a time.
        boxes: true boxes (k, 4) of each map as x0, y0, x1, y1 in pixels of the evaluated map, see `scale_boxes`.
        holes: add the boxes of hole contours to the rule `all`; None: in the benchmark convention only, whose contour
            search includes them.
        threads: maps are shared among so many.

    Raises:
        ValueError: maps that are not n x h x w, an image without a true box, corners out of order, a map with NaN or
            infinity (the message says which).

    Example:
        >>> map = torch.zeros(1, 4, 4); map[0, :2, :2] = 1  # predicted: x 0..1, y 0..1
        >>> box_curves(map, [np.array([[0, 0, 2, 4]])], side=None, convention="clean").matrix("all")[0, 128].item()
        0.5
    """
    _check("convention", convention, get_args(Convention))
    _check("normalisation", normalisation, get_args(Normalisation))
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected (n, h, w)")
    source = maps.detach().cpu()
    values = (source if source.dtype in (torch.float32, torch.float64) else source.float()).numpy()
    excess = int(convention == "benchmark")
    truth = [half_open_boxes(box, i, excess) for i, box in enumerate(boxes)]
    if len(truth) != len(values):
        raise ValueError(f"boxes holds {len(truth)} entries for {len(values)} maps; give one array per map")
    with_holes = convention == "benchmark" if holes is None else holes

    def chunk_curves(start: int) -> tuple[np.ndarray, np.ndarray]:
        part = truth[start : start + _CHUNK]
        levels = quantise(values[start : start + _CHUNK], normalisation, side, first=start)
        return level_curves(levels, np.concatenate(part), np.cumsum([0, *map(len, part)]), excess, with_holes)

    if not truth:
        return BoxCurves(torch.zeros(0, 3, N_COLUMNS), torch.zeros(0, dtype=torch.int64))
    with ThreadPoolExecutor(threads) as pool:  # the kernels and OpenCV release the interpreter lock
        iou, peaks = zip(*pool.map(chunk_curves, range(0, len(values), _CHUNK)), strict=True)
    return BoxCurves(torch.from_numpy(np.concatenate(iou)), torch.from_numpy(np.concatenate(peaks)))


def quantise(
    maps: np.ndarray, normalisation: Normalisation = "minmax", side: int | None = SIDE, first: int = 0
) -> np.ndarray:
    """Maps (n, h, w) → grey levels (n, side, side) uint8, truncated like the benchmark does."""
    return np.stack([(one * 255).astype(np.uint8) for one in map_scores(maps, normalisation, side, first)])


def map_scores(
    maps: np.ndarray, normalisation: Normalisation = "minmax", side: int | None = SIDE, first: int = 0
) -> list[np.ndarray]:
    """Enlarge maps (n, h, w; cubic, float64), then normalise each to [0, 1]; constant or empty maps become zero.

    Raises:
        ValueError: NaN or infinity, or a value outside [0, 1] with `normalisation="none"`; the message counts maps
            from `first`.

    Example:
        >>> map_scores(np.array([[[1.0, 3.0]], [[2.0, 2.0]]]), side=None)
        [array([[0., 1.]]), array([[0., 0.]])]
    """
    return [_score(np.asarray(one, dtype=np.float64), normalisation, side, first + i) for i, one in enumerate(maps)]


def _score(cam: np.ndarray, normalisation: Normalisation, side: int | None, index: int) -> np.ndarray:
    low, high = cam.min(), cam.max()  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"maps[{index}] holds NaN or infinity; check the network that made it for overflow")
    if side is not None and cam.shape != (side, side):
        cam = cv2.resize(cam, (side, side), interpolation=cv2.INTER_CUBIC)
        low, high = cam.min(), cam.max()
    if normalisation == "none":
        if not (low >= 0 and high <= 1):
            raise ValueError(f"maps[{index}] spans [{low}, {high}], expected [0, 1] with normalisation='none'")
        return cam
    if normalisation == "max":
        return np.maximum(cam, 0) / high if high > 0 else np.zeros_like(cam)
    if not high > low:
        return np.zeros_like(cam)
    cam = cam - low
    cam /= cam.max()
    return cam


def scale_boxes(
    boxes: np.ndarray, size: tuple[int, int], *, side: int = SIDE, convention: Convention = "benchmark"
) -> np.ndarray:
    """Boxes (k, 4) in pixels of an image of `size` (width, height) → pixels of the side x side map.

    The benchmark truncates to integers; the clean convention keeps fractions.

    Raises:
        ValueError: a width or height that is not positive.

    Example:
        >>> scale_boxes(np.array([[10, 20, 333, 499]]), (500, 500)).tolist()
        [[4.0, 8.0, 149.0, 223.0]]
    """
    _check("convention", convention, get_args(Convention))
    width, height = size
    if width <= 0 or height <= 0:
        raise ValueError(f"size is {size}, expected a positive width and height in pixels")
    scaled = np.asarray(boxes, dtype=np.float64) * side / np.array([width, height, width, height])
    return np.trunc(scaled) if convention == "benchmark" else scaled


def half_open_boxes(boxes: np.ndarray, index: int, excess: int) -> np.ndarray:
    """Boxes (k, 4) as half-open float64; inclusive corners (`excess` 1) end one pixel later.

    Raises ValueError, naming the image `index`, for no box, other shapes and corners out of order.
    """
    box = np.array(boxes, dtype=np.float64)
    if box.ndim != 2 or box.shape[1] != 4 or len(box) == 0:
        raise ValueError(f"boxes[{index}] has shape {box.shape}, expected (k, 4) with k >= 1")
    if not (np.isfinite(box).all() and (box[:, :2] <= box[:, 2:]).all()):
        raise ValueError(f"boxes[{index}] is {box.tolist()}, expected finite x0 <= x1 and y0 <= y1")
    box[:, 2:] += excess
    return box


def _check(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, allowed))}")


# How the threshold τ of a localisation metric is chosen. Published numbers differ by more in their τ policy than in
# their method, so a policy is an argument of every metric and the τ used is part of every result.

THRESHOLDS = np.arange(0, 1, 0.001)
"""The benchmark's 1000 thresholds; they select at most 255 distinct masks of a map."""


@dataclass(frozen=True)
class FixedThreshold:
    """One τ in [0, 1), a fraction of the map's highest value; 0.2 is the CAM paper's (Zhou et al. 2016, §3.2).

    Raises ValueError for another value.
    """

    value: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1:
            raise ValueError(f"threshold is {self.value}, expected a fraction in [0, 1)")


@dataclass(frozen=True)
class OracleThreshold:
    """The τ that is best on the evaluated images themselves, per IoU: what the benchmark's MaxBoxAcc does."""


@dataclass(frozen=True)
class ValidationThreshold:
    """The τ that is best, for the same metric, on another set of images.

    `correct` marks the images whose class is right; Top-1 and Top-5 Loc need it, the other metrics do not look at it.
    Raises ValueError for no image, or another number of `correct`.
    """

    curves: BoxCurves
    correct: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        if len(self.curves) == 0:
            raise ValueError("the validation curves hold no image, so no threshold can be chosen on them")
        if self.correct is not None and len(self.correct) != len(self.curves):
            raise ValueError(f"correct has {len(self.correct)} entries for {len(self.curves)} validation images")


ThresholdPolicy = FixedThreshold | OracleThreshold | ValidationThreshold


def levels_at(thresholds: np.ndarray, peak: int) -> np.ndarray:
    """Grey level of each τ for a map of highest level `peak`: ⌊τ · peak⌋, in float64 like the benchmark."""
    return (thresholds * peak).astype(np.int64)


def iou_at(iou: Float[Tensor, "n 256"], peaks: Int[Tensor, " n"], threshold: float) -> Float[Tensor, " n"]:
    """Best IoU of each image at one τ."""
    levels = (threshold * peaks.double()).long()  # as `levels_at`, in float64
    return iou.gather(1, levels[:, None].to(iou.device))[:, 0]


def hit_counts(
    iou: Float[Tensor, "n 256"], peaks: Int[Tensor, " n"], correct: Bool[Tensor, " n"], min_iou: float
) -> np.ndarray:
    """Number of images that are hits at each of `THRESHOLDS` (1000,); counts, since equal shares must tie exactly.

    The comparison is made in float32, the precision of the curves, so that an IoU of exactly 7/10 passes 0.7.
    """
    hits = (iou >= torch.tensor(min_iou, dtype=torch.float32)) & correct[:, None]
    total = np.zeros(len(THRESHOLDS), dtype=np.int64)
    for peak in torch.unique(peaks).tolist():
        total += hits[peaks == peak].sum(0).cpu().numpy()[levels_at(THRESHOLDS, peak)]
    return total


def choose_threshold(
    policy: ThresholdPolicy,
    iou: Float[Tensor, "n 256"],
    peaks: Int[Tensor, " n"],
    correct: Bool[Tensor, " n"],
    *,
    min_iou: float,
    rule: BoxRule,
    comparison: Comparison,
) -> float:
    """τ of a policy for one IoU; the lowest of equally good ones."""
    if isinstance(policy, FixedThreshold):
        return policy.value
    if isinstance(policy, ValidationThreshold):
        held_out = policy.curves
        iou, peaks = held_out.matrix(rule, comparison), held_out.peaks
        everything = torch.ones(len(held_out), dtype=torch.bool)
        correct = everything if policy.correct is None else policy.correct.bool()
    return float(THRESHOLDS[hit_counts(iou, peaks, correct, min_iou).argmax()])


def center_gaussian(side: int = SIDE, sigma: float = 56.0) -> Float[Tensor, "s s"]:
    """exp(-r² / 2σ²) around the centre of a side x side map, r in pixels: a map that never saw the image.

    As the benchmark's centre baseline. Raises ValueError for a side or sigma that is not positive.

    Example:
        >>> center_gaussian(3, sigma=1.0)[1].tolist() == [0.6065306597126334, 1.0, 0.6065306597126334]
        True
    """
    if side < 1 or sigma <= 0:
        raise ValueError(f"side is {side} and sigma {sigma}, expected both positive")
    offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(offset**2) / (2 * sigma**2))
    return line[:, None] * line[None, :]


def center_gaussian_curves(
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[np.ndarray],
    *,
    sigma: float = 56.0,
    convention: Convention = "benchmark",
) -> BoxCurves:
    """Curves of `center_gaussian` for images known only by size (width, height) and true boxes (k, 4) in their pixels.

    Narrow Gaussians lose accuracy to the 256 levels: the benchmark's value needs sigma >= 56.

    Raises:
        ValueError: another number of sizes than of images with boxes, or as `box_curves`.
    """
    if len(sizes) != len(boxes):
        raise ValueError(f"{len(sizes)} sizes for {len(boxes)} images with boxes; give one of each per image")
    scaled = [scale_boxes(box, size, convention=convention) for box, size in zip(boxes, sizes, strict=True)]
    maps = center_gaussian(sigma=sigma).expand(len(scaled), -1, -1)
    return box_curves(maps, scaled, convention=convention)
