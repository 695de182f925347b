"""Pixel average precision (PxAP) of localisation maps against masks with ignore regions (digest: EGA §1)."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torchmetrics import Metric

from repro.metrics.box_curves import SIDE, Normalisation, map_scores
from repro.metrics.pixel_histogram import N_BINS, count_scores

FOREGROUND, BACKGROUND, IGNORE = 1, 0, 255


def pixel_histograms(
    maps: Float[Tensor, "n h w"],
    masks: Integer[Tensor, "n s s"],
    *,
    normalisation: Normalisation = "minmax",
) -> Integer[Tensor, "n 2 1002"]:
    """Per image, how many foreground and background pixels score in each of the benchmark's 1002 bins.

    Maps are enlarged to the masks' side and normalised like for boxes; mask values are 1, 0 and 255
    (ignored). Raises ValueError for other mask values, sizes that do not match and scores outside [0, 1].
    """
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or len(maps) != len(masks):
        raise ValueError(f"masks has shape {tuple(masks.shape)}, expected ({len(maps)}, side, side)")
    if masks.numel() and not (int(masks.min()) >= 0 and int(masks.max()) <= IGNORE):
        raise ValueError(f"masks span [{masks.min()}, {masks.max()}], expected values 0, 1 and 255")
    scores = map_scores(maps.detach().cpu().numpy(), normalisation, masks.shape[1])
    labels = masks.detach().cpu().numpy().astype(np.uint8)
    counts = np.zeros((len(labels), 2, N_BINS), dtype=np.int64)
    for i, score in enumerate(scores):
        if not count_scores(score.ravel(), labels[i].ravel(), counts[i]):
            raise ValueError(f"masks[{i}] holds values other than 0, 1 and 255, or its map leaves [0, 1]")
    return torch.from_numpy(counts)


def average_precision(histograms: Integer[Tensor, "2 1002"]) -> float:
    """Area under the precision–recall steps in percent, Σ precision · Δrecall from the highest score down.

    Raises ValueError without foreground pixels, for which recall is undefined.
    """
    true, false = histograms.cpu().numpy()[:, ::-1].cumsum(axis=1).astype(np.float64)
    if true[-1] == 0:
        raise ValueError("no foreground pixel was counted, so PxAP is undefined; check the masks")
    counted = true + false
    precision = np.divide(true, counted, out=np.zeros_like(true), where=counted > 0)
    return float((precision[1:] * np.diff(true / true[-1])).sum() * 100)


def combine_masks(instances: Sequence[np.ndarray], ignore: np.ndarray | None, side: int = SIDE) -> Tensor:
    """One mask (side, side) of 1, 0 and 255 from instance masks and an ignore region of any sizes.

    Each is resized to the nearest pixel and cut at 0.5; the foreground wins over the ignore region.
    """
    if not instances:
        raise ValueError("instances is empty, expected at least one mask")
    foreground = np.any([_nearest(mask, side) for mask in instances], axis=0)
    combined = np.where(foreground, FOREGROUND, BACKGROUND).astype(np.uint8)
    if ignore is not None:
        combined[_nearest(ignore, side) & ~foreground] = IGNORE
    return torch.from_numpy(combined)


def _nearest(mask: np.ndarray, side: int) -> np.ndarray:
    large = cv2.resize(np.asarray(mask, np.float64), (side, side), interpolation=cv2.INTER_NEAREST)
    return large > 0.5


class PxAP(Metric):
    """PxAP pooled over all pixels of all images, in percent.

    `correct_only` counts correctly classified images alone: what EGA's released script does (digest: EGA §0).
    """

    full_state_update = False
    histograms: Tensor

    def __init__(self, *, normalisation: Normalisation = "minmax", correct_only: bool = False) -> None:
        super().__init__()
        self.normalisation: Normalisation = normalisation
        self.correct_only = correct_only
        self.add_state("histograms", torch.zeros(2, N_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        maps: Float[Tensor, "n h w"],
        masks: Integer[Tensor, "n s s"],
        correct: Bool[Tensor, " n"] | None = None,
    ) -> None:
        """Add n maps with their masks (1, 0, 255 = ignored); `correct` is needed if `correct_only` is set."""
        if self.correct_only:
            if correct is None:
                raise ValueError("PxAP(correct_only=True) needs correct, a truth value per image")
            maps, masks = maps[correct.to(maps.device)], masks[correct.to(masks.device)]
        counts = pixel_histograms(maps, masks, normalisation=self.normalisation)
        self.histograms += counts.sum(0).to(self.histograms.device)

    def compute(self) -> Float[Tensor, ""]:
        """Percent, in [0, 100]; ValueError if no foreground pixel was seen."""
        return torch.tensor(average_precision(self.histograms), dtype=torch.float64)
