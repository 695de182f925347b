"""What one evaluation leaves behind, and every localisation number read from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from repro.data.images import ImageSet
from repro.data.load import data_path
from repro.data.wsol_metadata import read_wsol_metadata
from repro.metrics.boxes import (
    SIDE,
    BoxCurves,
    FixedThreshold,
    OracleThreshold,
    ThresholdPolicy,
    ValidationThreshold,
    box_curves,
    center_gaussian_curves,
    scale_boxes,
)
from repro.metrics.classification import top_k_correct
from repro.metrics.localisation import (
    BoxAccuracy,
    GTKnownLoc,
    MaxBoxAccV2,
    Top1Loc,
    average_precision,
    combine_masks,
    pixel_histograms,
)
from repro.training.run_store import RunResult
from repro.vocabulary import ThresholdName

_WSOL_FOLDERS = {"cub": "CUB", "ilsvrc": "ILSVRC"}
_CHUNK = 256


class MetricPolicy(BaseModel):
    """How localisation is scored, beyond what the readings ledger fixes (`ega.metric.*`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: ThresholdName = "oracle"
    """`oracle`: the best τ on the evaluated images, what the released code and MaxBoxAcc do; `fixed`: `tau`;
    `validation`: the best τ on held-out images."""
    tau: float = Field(default=0.2, ge=0, lt=1)
    """Share of the map's maximum, the CAM paper's 0.2."""

    def rule(self, held_out: Localised | None) -> ThresholdPolicy:
        """The policy as the metrics take it; `held_out` is what the same network localises on held-out images.

        Raises:
            ValueError: the policy is `validation` and there are no held-out images.
        """
        if self.threshold == "oracle":
            return OracleThreshold()
        if self.threshold == "fixed":
            return FixedThreshold(self.tau)
        if held_out is None:
            raise ValueError("threshold 'validation' needs held-out images: localise with validate=True")
        return ValidationThreshold(held_out.curves, held_out.correct)

    def words(self) -> str:
        """What a sentence says of τ; nothing for the oracle's, the benchmark's rule."""
        fixed = f"τ fixed at {self.tau:g}"
        return {"oracle": "", "fixed": fixed, "validation": "τ chosen on held-out images"}[self.threshold]


@dataclass(frozen=True)
class Score:
    """One number in per cent, with the values per image behind it where it is their mean."""

    value: float
    samples: list[float] | None
    thresholds: tuple[float, ...] = ()
    """τ used, one per IoU."""


@dataclass(frozen=True)
class Localised:
    """One trained network's evaluation."""

    result: RunResult
    """Tensors: `maps` (n, h, w), `correct` (n,), `iou` and `peaks` where there are boxes, `histogram` with masks."""
    training_key: str
    seed: int
    held_out: Localised | None = None
    """The same network on held-out images, where τ may be chosen there."""

    @property
    def maps(self) -> Float[Tensor, "n h w"]:
        """Class maps of the true class, at the network's resolution."""
        return self.result.tensors["maps"]

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """Whether the top class is the true one."""
        return self.result.tensors["correct"].bool()

    @property
    def curves(self) -> BoxCurves:
        """Best overlap at every threshold.

        Raises:
            ValueError: the images have no boxes.
        """
        if "iou" not in self.result.tensors:
            raise ValueError("these images have no boxes, so there is no box metric; use pxap_error")
        return BoxCurves(self.result.tensors["iou"], self.result.tensors["peaks"])

    def score(self, metric: str, policy: MetricPolicy) -> Score:
        """One error in per cent: `top1_cls_error`, `top1_loc_error`, `corloc_error`, `max_box_acc_v2_error`,
        `pxap_error`.

        Raises:
            ValueError: unknown metric, or one that needs boxes or masks that the images lack.
        """
        if metric == "top1_cls_error":
            wrong = 100.0 * (~self.correct).double()
            return Score(wrong.mean().item(), wrong.tolist())
        if metric == "pxap_error":
            if "histogram" not in self.result.tensors:
                raise ValueError("these images have no masks, so PxAP is undefined; use a box metric")
            return Score(100 - average_precision(self.result.tensors["histogram"]), None)
        return _box_error(metric, self, policy)


def _box_error(metric: str, localised: Localised, policy: MetricPolicy) -> Score:
    rule = policy.rule(localised.held_out)
    if metric == "top1_loc_error":
        top = Top1Loc(rule)
        top.update(localised.curves, localised.correct)
        found = top.compute()
    else:
        kinds: dict[str, type[BoxAccuracy]] = {"corloc_error": GTKnownLoc, "max_box_acc_v2_error": MaxBoxAccV2}
        if metric not in kinds:
            raise ValueError(
                f"unknown metric '{metric}'; expected top1_cls_error, top1_loc_error, pxap_error or {', '.join(kinds)}"
            )
        accuracy = kinds[metric](rule)
        accuracy.update(localised.curves)
        found = accuracy.compute()
    misses = (~found.hits).sum(axis=1)  # counted and divided once, so that no sum of rounded shares decides a digit
    errors = 100 * misses / found.hits.shape[1]
    return Score(100 * int(misses.sum()) / found.hits.size, errors.tolist(), found.thresholds)


def measure(images: ImageSet, maps: Float[Tensor, "n h w"], scores: Float[Tensor, "n classes"]) -> dict[str, Tensor]:
    """Everything the metrics need of `maps`, from one pass over them."""
    found = {"maps": maps, "correct": top_k_correct(scores, images.labels).to(torch.uint8)}
    if images.boxes is not None:
        curves = box_curves(maps, true_boxes(images))
        found |= {"iou": curves.iou, "peaks": curves.peaks}
    if images.masks is not None:
        found["histogram"] = _histogram(images, maps)
    return found


def _histogram(images: ImageSet, maps: Tensor) -> Tensor:
    assert images.masks is not None
    total = torch.zeros(())
    for start in range(0, len(images), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(images)))
        ignore = images.ignore
        masks = torch.stack(
            [combine_masks([images.masks[i].numpy()], None if ignore is None else ignore[i].numpy()) for i in rows]
        )
        total = total + pixel_histograms(maps[rows.start : rows.stop], masks).sum(0)
    return total.long()


def true_boxes(images: ImageSet) -> list[np.ndarray]:
    """True boxes in pixels of the 224 × 224 map, in the benchmark's convention (inclusive corners, truncated).

    CUB and ILSVRC are read from the benchmark's own metadata, in original pixels, so that nothing is rounded twice;
    other sets give the boxes of the images at hand.

    Raises:
        ValueError: the images have no boxes.
    """
    if images.boxes is None:
        raise ValueError(f"data set '{images.name}' has no boxes")
    if images.name in _WSOL_FOLDERS:
        folder = data_path("wsol_metadata", f"metadata/{_WSOL_FOLDERS[images.name]}/{images.split}")
        metadata = read_wsol_metadata(folder)
        assert metadata.sizes is not None
        place = {name: row for row, name in enumerate(metadata.ids)}
        rows = [place[name] for name in images.ids]
        return [scale_boxes(metadata.boxes[row], tuple(metadata.sizes[row].tolist())) for row in rows]
    height, width = images.images.shape[-2:]
    return [scale_boxes(box.numpy() - np.array([0, 0, 1, 1]), (width, height)) for box in images.boxes]


def centre_baseline(images: ImageSet) -> Localised:
    """A Gaussian in the middle of every image, which never looks at it: what any method must beat."""
    curves = center_gaussian_curves([(SIDE, SIDE)] * len(images), true_boxes(images))
    correct = torch.ones(len(images), dtype=torch.uint8)
    tensors = {"iou": curves.iou, "peaks": curves.peaks, "correct": correct}
    return Localised(RunResult("", tensors, {}, [], 0.0, reused=False), "", 0)
