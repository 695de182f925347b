"""Figs. 5 and 6: predicted boxes and masks to look at, and what the captions claim about them, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repro.data.images import ImageSet
from repro.evidence.comparison import sample_key
from repro.evidence.statistics import paired_interval
from repro.losses.attack import AttackSettings, pgd_attack
from repro.metrics.boxes import SIDE, iou_at, quantise
from repro.metrics.localisation import MaxBoxAcc
from repro.models.cam_network import CAMNetwork, maps_of
from repro.models.dual_batch_norm import DualBatchNorm2d, route_batch_norm
from repro.report.galleries import box_gallery
from repro.report.plots import MARKERS, PALETTE
from repro.studies.ega import EvaluatedTrial, Trial, add_row
from repro.studies.localised import Localised, MetricPolicy
from repro.studies.rows import RowCollector
from repro.training.batches import TrainingSettings, normalised, resized

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


def picture_figure(
    outcomes: Sequence[EvaluatedTrial], images: Sequence[int], policy: MetricPolicy, title: str
) -> Figure:
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


def picture_rows(outcomes: Sequence[EvaluatedTrial], policy: MetricPolicy) -> RowCollector:
    """Mean IoU and, where there are masks, the share of object and of background that the predicted mask covers."""
    rows = RowCollector()
    for outcome in outcomes:
        for found in outcome.found:
            threshold = threshold_of(found, policy)
            curves = found.curves
            values = {"mean_iou": 100 * iou_at(curves.matrix("largest"), curves.peaks, threshold)}
            inside = outcome.study.images.test.masks
            if inside is not None:
                values |= _coverage(masks_at(found.maps, threshold), inside)
            for metric, each in values.items():
                add_row(rows, outcome.trial, found, metric, each.double().mean().item(), each.tolist(), {})
    return rows


def _coverage(masks: Bool[np.ndarray, "n s s"], truth: Bool[Tensor, "n h w"]) -> dict[str, Tensor]:
    enlarged = torch.nn.functional.interpolate(truth[:, None].float(), (SIDE, SIDE), mode="nearest")[:, 0].bool()
    predicted = torch.from_numpy(masks)
    shares = {}
    for metric, region in (("object_coverage", enlarged), ("background_coverage", ~enlarged)):
        shares[metric] = 100 * (predicted & region).sum((1, 2)) / region.sum((1, 2)).clamp(min=1)
    return shares


def claim_sentences(rows: RowCollector, seeds: Sequence[int]) -> list[str]:
    """EGA minus CAM for each of the captions' claims, paired over images (one seed) or over seeds and images."""
    sentences = []
    for metric in CLAIMED:
        if sample_key("ega", metric, seeds[0]) not in rows.samples:
            continue
        first, second = (
            np.array([rows.samples[sample_key(method, metric, seed)] for seed in seeds]) for method in ("ega", "cam")
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


# Fig. 4, measured: how activations of clean and of adversarial images differ at every batch norm.

VIEWS = ("clean", "adversarial")
STATISTICS = ("activation_mean", "activation_std")
_BATCH = 50


@dataclass(frozen=True)
class ActivationStatistics:
    """Mean and deviation of what enters each batch norm, and the activated share of the class map, per image."""

    layers: tuple[str, ...]
    values: dict[tuple[str, str], Float[Tensor, "layers n"]]
    """By (view, statistic), over channels and pixels of an image."""
    activated_area: dict[str, Float[Tensor, " n"]]
    """By view: share of the class map's pixels above half of its range, in %."""


def activation_statistics(
    network: CAMNetwork, images: ImageSet, training: TrainingSettings, attack: AttackSettings
) -> ActivationStatistics:
    """Statistics of clean images on the main route and of their adversarial versions on the auxiliary one.

    Args:
        network: trained, in eval mode; with dual batch norms the attack goes through the auxiliary halves.
        images: looked at with their true labels.
        training: side and normalisation.
        attack: the perturbation.

    Raises:
        ValueError: the network has no dual batch norm.
    """
    norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, DualBatchNorm2d)}
    if not norms:
        raise ValueError("the network has no dual batch norm; Fig. 4 needs one trained with batch_norm = 'dual'")
    parts: dict[tuple[str, str], list[Tensor]] = {}
    areas: dict[str, list[Tensor]] = {view: [] for view in VIEWS}
    device = next(network.parameters()).device
    torch.manual_seed(0)
    for start in range(0, len(images), _BATCH):
        labels = images.labels[start : start + _BATCH].to(device)
        clean = normalised(resized(images.images[start : start + _BATCH].to(device), training.crop), training)
        moved = pgd_attack(network, clean, labels, attack, training.normalisation)
        for view, inputs in zip(VIEWS, (clean, moved), strict=True):
            with torch.inference_mode(), route_batch_norm(network, view), _inputs_of(norms) as seen:  # type: ignore[arg-type]
                maps = maps_of(network.cam(inputs).maps, labels)
            for statistic, values in zip(STATISTICS, _moments(seen), strict=True):
                parts.setdefault((view, statistic), []).append(values)
            areas[view].append(_area_above_half(maps))
    return ActivationStatistics(
        tuple(name.removeprefix("backbone.") for name in norms),
        {key: torch.cat(values, dim=1) for key, values in parts.items()},
        {view: torch.cat(values) for view, values in areas.items()},
    )


@contextmanager
def _inputs_of(norms: dict[str, DualBatchNorm2d]) -> Iterator[list[Tensor]]:
    """Collect what enters each of `norms`, in their order, inside the block."""
    seen: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handles = [layer.register_forward_pre_hook(keep) for layer in norms.values()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _moments(seen: list[Tensor]) -> tuple[Float[Tensor, "layers n"], Float[Tensor, "layers n"]]:
    mean = torch.stack([values.mean((1, 2, 3)) for values in seen])
    return mean.cpu(), torch.stack([values.flatten(1).std(1) for values in seen]).cpu()


def _area_above_half(maps: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return 100 * (maps > (low + high) / 2).float().mean((1, 2)).cpu()


def statistics_rows(found: ActivationStatistics, trial: Trial, seed: int) -> RowCollector:
    """Rows of Fig. 4: mean and deviation by layer, and the activated area."""
    rows = RowCollector()

    def add(view: str, metric: str, values: Tensor, unit: str, **setting: str) -> None:
        rows.add(
            view,
            metric,
            values.double().mean().item(),
            dataset=trial.study.dataset,
            network=trial.study.network,
            seed=seed,
            setting={**setting},
            samples=values.tolist(),
            unit=unit,
        )

    for view in VIEWS:
        for index, layer in enumerate(found.layers):
            for statistic in STATISTICS:
                add(view, statistic, found.values[view, statistic][index], "", layer=layer)
        add(view, "activated_area", found.activated_area[view], "%")
    return rows


def difference_sentences(found: ActivationStatistics) -> list[str]:
    """In how many layers each statistic differs between the views, and by how much at most; paired over images."""
    sentences = []
    for statistic in STATISTICS:
        clean, moved = (found.values[view, statistic].double().numpy() for view in VIEWS)
        intervals = [paired_interval(a, b, over="images") for a, b in zip(moved, clean, strict=True)]
        apart = sum(interval.low > 0 or interval.high < 0 for interval in intervals)
        change = 100 * np.abs(moved.mean(1) - clean.mean(1)) / np.abs(clean.mean(1))
        largest = int(change.argmax())
        sentences.append(
            f"{statistic.replace('_', ' ')}: adversarial differs from clean in {apart} of {len(found.layers)} layers "
            f"(95 % paired intervals over {clean.shape[1]} images); the largest change is {change[largest]:.1f} % "
            f"at {found.layers[largest]}."
        )
    area = paired_interval(
        found.activated_area["adversarial"].double().numpy(), found.activated_area["clean"].double().numpy(), "images"
    )
    sentences.append(
        f"Activated area of the class map: {area.value:+.2f} points on adversarial images "
        f"(95 % interval {area.low:+.2f} to {area.high:+.2f})."
    )
    return sentences


def statistics_distance(network: nn.Module) -> dict[str, float]:
    """Per dual batch norm: mean over channels of |running mean, auxiliary − main| in main standard deviations.

    Raises:
        ValueError: the network has no dual batch norm.
    """
    distances = {}
    for name, layer in network.named_modules():
        if isinstance(layer, DualBatchNorm2d):
            main, auxiliary = _running(layer), _running(layer.auxiliary)
            distances[name.removeprefix("backbone.")] = (
                ((auxiliary[0] - main[0]).abs() / main[1].clamp(min=layer.eps).sqrt()).mean().item()
            )
    if not distances:
        raise ValueError("the network has no dual batch norm")
    return distances


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None and layer.running_var is not None
    return layer.running_mean, layer.running_var


def statistics_figure(found: ActivationStatistics, title: str) -> Figure:
    """Mean and deviation of the activations by layer, clean beside adversarial."""
    figure, grid = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for axes, statistic, name in zip(grid, STATISTICS, ("mean", "standard deviation"), strict=True):
        for index, view in enumerate(VIEWS):
            values = found.values[view, statistic].mean(1)
            axes.plot(values, MARKERS[index], linestyle=("-", "--")[index], color=PALETTE[index], label=view)
        axes.set_xticks(range(len(found.layers)), found.layers, rotation=60, ha="right", fontsize=8)
        axes.set_ylabel(name)
        axes.set_xlabel("batch norm")
    grid[0].legend()
    figure.suptitle(title, fontsize=11)
    return figure


def distance_figure(distances: dict[str, float], title: str) -> Figure:
    """How far the two sets of running statistics have moved apart, by layer."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.bar(range(len(distances)), list(distances.values()), color=PALETTE[0])
    axes.set_xticks(range(len(distances)), list(distances), rotation=60, ha="right", fontsize=8)
    axes.set_xlabel("batch norm")
    axes.set_ylabel("|auxiliary − main mean|\n(main standard deviations)")
    axes.set_title(title)
    return figure
