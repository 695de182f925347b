"""Fig. 4, measured: how activations of clean and of adversarial images differ at every batch norm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repro.data import ImageSet
from repro.evidence.comparison import sample_key
from repro.evidence.intervals import paired_interval
from repro.evidence.record import Row, Setting
from repro.losses import AttackSettings, pgd_attack
from repro.models import CAMNetwork, DualBatchNorm2d, route_batch_norm
from repro.report.figures import MARKERS, PALETTE
from repro.studies.ega import Measured, Trial
from repro.training import TrainingSettings
from repro.training.batches import normalised, resized

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
                maps = network.cam(inputs).maps[torch.arange(len(labels)), labels]
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


def statistics_rows(found: ActivationStatistics, trial: Trial, seed: int) -> Measured:
    """Rows of Fig. 4: mean and deviation by layer, and the activated area."""
    measured = Measured()
    for view in VIEWS:
        for index, layer in enumerate(found.layers):
            for statistic in STATISTICS:
                values = found.values[view, statistic][index]
                _add(measured, trial, view, statistic, values, {"layer": layer}, seed, "")
        _add(measured, trial, view, "activated_area", found.activated_area[view], {}, seed, "%")
    return measured


def _add(
    measured: Measured, trial: Trial, view: str, metric: str, values: Tensor, setting: Setting, seed: int, unit: str
) -> None:
    measured.rows.append(
        Row(
            method=view,
            metric=metric,
            value=values.double().mean().item(),
            dataset=trial.study.dataset,
            network=trial.study.network,
            seed=seed,
            setting=setting,
            n=len(values),
            unit=unit,
        )
    )
    measured.samples[sample_key(view, metric, seed, setting)] = values.tolist()


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
