"""Figs. 5 and 6: predicted boxes and masks to look at, and what the captions claim about them, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from repro.evidence.comparison import sample_key
from repro.evidence.intervals import paired_interval
from repro.evidence.record import Row
from repro.metrics import MaxBoxAcc
from repro.metrics.box_curves import SIDE, quantise
from repro.metrics.thresholds import iou_at
from repro.report.box_gallery import box_gallery
from repro.studies.ega import Measured, Outcome
from repro.studies.localised import Localised, MetricPolicy

CLAIMED = ("mean_iou", "object_coverage", "background_coverage")


def threshold_of(found: Localised, policy: MetricPolicy) -> float:
    """τ of the largest box at IoU 0.5 under `policy`: what the pictures are drawn with."""
    metric = MaxBoxAcc(policy.rule(found.held_out))
    metric.update(found.curves)
    return metric.compute().thresholds[0]


def masks_at(maps: Float[Tensor, "n h w"], threshold: float) -> Bool[np.ndarray, "n 224 224"]:
    """Pixels above τ of the enlarged, min–max scaled map, as the metrics cut it."""
    levels = quantise(maps.numpy())
    peaks = levels.max(axis=(1, 2), keepdims=True).astype(np.float64)
    return np.asarray(levels > np.floor(threshold * peaks))


def largest_boxes(masks: Bool[np.ndarray, "n s s"], size: tuple[int, int]) -> list[Float[np.ndarray, "k 4"]]:
    """The box around the contour of largest area of each mask, in pixels of an image of `size` (height, width)."""
    boxes = []
    scale = np.array([size[1], size[0], size[1], size[0]]) / masks.shape[-1]
    for mask in masks:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        if not contours:
            boxes.append(np.zeros((0, 4)))
            continue
        x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
        boxes.append(np.array([[x, y, x + width, y + height]]) * scale)
    return boxes


def picture_figure(outcomes: Sequence[Outcome], images: Sequence[int], policy: MetricPolicy, title: str) -> Figure:
    """The images at `images` with the first seed's boxes and masks of every outcome.

    Raises:
        ValueError: the images have no boxes.
    """
    test = outcomes[0].study.images.test
    if test.boxes is None:
        raise ValueError(f"data set '{test.name}' has no boxes to draw")
    height, width = test.images.shape[-2:]
    predicted = {}
    for outcome in outcomes:
        found = outcome.found[0]
        masks = masks_at(found.maps[list(images)], threshold_of(found, policy))
        predicted[outcome.trial.method.upper()] = masks, largest_boxes(masks, (height, width))
    labels = [test.classes[int(test.labels[index])].split(".")[-1].replace("_", " ") for index in images]
    truth = [test.boxes[index].numpy() for index in images]
    return box_gallery(test.images[list(images)], truth, predicted, labels, title)


def picture_rows(outcomes: Sequence[Outcome], policy: MetricPolicy) -> Measured:
    """Mean IoU and, where there are masks, the share of object and of background that the predicted mask covers."""
    measured = Measured()
    for outcome in outcomes:
        for found in outcome.found:
            threshold = threshold_of(found, policy)
            curves = found.curves
            overlap = 100 * iou_at(curves.matrix("largest"), curves.peaks, threshold)
            _add(measured, outcome, found, "mean_iou", overlap)
            inside = outcome.study.images.test.masks
            if inside is not None:
                for metric, values in _coverage(masks_at(found.maps, threshold), inside).items():
                    _add(measured, outcome, found, metric, values)
    return measured


def _coverage(masks: Bool[np.ndarray, "n s s"], truth: Bool[Tensor, "n h w"]) -> dict[str, Tensor]:
    enlarged = torch.nn.functional.interpolate(truth[:, None].float(), (SIDE, SIDE), mode="nearest")[:, 0].bool()
    predicted = torch.from_numpy(masks)
    shares = {}
    for metric, region in (("object_coverage", enlarged), ("background_coverage", ~enlarged)):
        shares[metric] = 100 * (predicted & region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1)
    return shares


def _add(measured: Measured, outcome: Outcome, found: Localised, metric: str, values: Tensor) -> None:
    trial = replace(outcome.trial, setting={})
    measured.rows.append(
        Row(
            method=trial.method,
            metric=metric,
            value=values.double().mean().item(),
            dataset=trial.study.dataset,
            network=trial.study.network,
            seed=found.seed,
            n=len(values),
            unit="%",
        )
    )
    measured.samples[sample_key(trial.method, metric, found.seed)] = values.tolist()


def claim_sentences(measured: Measured, seeds: Sequence[int]) -> list[str]:
    """EGA minus CAM for each of the captions' claims, paired over images (one seed) or over seeds and images."""
    sentences = []
    for metric in CLAIMED:
        if not any(row.metric == metric for row in measured.rows):
            continue
        first, second = (
            np.array([measured.samples[sample_key(method, metric, seed)] for seed in seeds])
            for method in ("ega", "cam")
        )
        found = (
            paired_interval(first[0], second[0], over="images")
            if len(seeds) == 1
            else paired_interval(first, second, over="seeds and images")
        )
        sentences.append(
            f"{metric.replace('_', ' ')}: EGA − CAM = {found.value:+.1f} points "
            f"(95 % interval {found.low:+.1f} to {found.high:+.1f}; {first.shape[1]} images)."
        )
    return sentences
