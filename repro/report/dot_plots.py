"""Numbers with their intervals as dots, made from the rows of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repro.evidence.comparison import CellComparison
from repro.evidence.estimate import Estimate
from repro.report.figures import MARKERS, PALETTE


def interval_plot(cells: Sequence[CellComparison], metrics: Sequence[str], title: str) -> Figure:
    """One panel per metric: our value with its 95 % interval, the paper's as an open diamond.

    Args:
        cells: comparisons of one table.
        metrics: metric ids, one panel each.
        title: what to see.
    """
    shown = [cell for cell in cells if cell.metric in metrics and cell.ours]
    label = labeller(shown)
    labels = list(dict.fromkeys(label(cell) for cell in shown))
    width, height = 3.4 * len(metrics) + 2.4, 0.38 * len(labels) + 1.9
    figure, grid = plt.subplots(1, len(metrics), figsize=(width, height), sharey=True, squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=True):
        found = [cell for cell in shown if cell.metric == metric]
        _panel(axes, found, [labels.index(label(cell)) for cell in found])
        axes.set_yticks(range(len(labels)), labels)
    grid[0][0].invert_yaxis()
    handles = [Line2D([], [], marker="o", color=PALETTE[0], label="ours, 95 % interval")]
    if any(cell.published for cell in shown):
        handles.append(Line2D([], [], marker="D", mfc="none", color=PALETTE[5], linestyle="none", label="paper"))
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def labeller(cells: Sequence[CellComparison]) -> Callable[[CellComparison], str]:
    """A function that names a cell by what varies among `cells`: method, setting, or both."""
    methods = {cell.method for cell in cells}
    values: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in cell.setting.items():
            values.setdefault(name, set()).add(str(value))
    partial = {name for name in values if any(name not in cell.setting for cell in cells)}
    varying = {name for name, found in values.items() if len(found) > 1 or len(methods) == 1} | partial

    def label(cell: CellComparison) -> str:
        axes = [f"{name} = {value}" for name, value in cell.setting.items() if name in varying]
        return ", ".join([*([cell.method_label] if len(methods) > 1 or not axes else []), *axes])

    return label


def _panel(axes: Axes, cells: Sequence[CellComparison], places: Sequence[int]) -> None:
    for cell, place in zip(cells, places, strict=True):
        assert cell.ours is not None
        low, high = (x if np.isfinite(x) else cell.ours.value for x in (cell.ours.low, cell.ours.high))
        spread = [[cell.ours.value - low], [high - cell.ours.value]]
        axes.errorbar(cell.ours.value, place, xerr=spread, fmt="o", color=PALETTE[0], capsize=3)
        if cell.published:
            axes.plot(cell.published.value, place, "D", mfc="none", color=PALETTE[5], markersize=7)
    first = cells[0]
    unit = f" ({first.unit})" if first.unit and first.unit not in first.metric_label else ""
    hint = f"\n{first.better} is better" if first.better in ("lower", "higher") else ""
    axes.set_xlabel(f"{first.metric_label}{unit}{hint}")


def ranking_plot(errors: Mapping[str, Estimate], letters: Sequence[str], label: str, title: str) -> Figure:
    """Methods from best to worst with their 95 % intervals, and letters for groups that cannot be told apart.

    Args:
        errors: estimate per method, best first.
        letters: letters per method, in the same order; methods that share one do not differ. Empty where undecided.
        label: metric with its unit; lower is better.
        title: what to see.
    """
    figure, axes = plt.subplots(figsize=(6.4, 0.36 * len(errors) + 1.7))
    for place, (estimate, group) in enumerate(zip(errors.values(), letters, strict=True)):
        low, high = (end if np.isfinite(end) else estimate.value for end in (estimate.low, estimate.high))
        spread = [[estimate.value - low], [high - estimate.value]]
        axes.errorbar(estimate.value, place, xerr=spread, fmt="o", color=PALETTE[0], capsize=3)
        axes.annotate(group, (1.02, place), xycoords=("axes fraction", "data"), va="center", family="monospace")
    axes.set_yticks(range(len(errors)), list(errors))
    axes.set_ylim(len(errors) - 0.5, -0.5)
    key = "; methods that share a letter cannot be told apart" if any(letters) else ""
    axes.set_xlabel(f"{label}\nlower is better{key}")
    axes.set_title(title)
    return figure


def scatter(cells: Sequence[CellComparison], x: str, y: str, title: str) -> Figure:
    """Our values of metric `y` over metric `x`, one labelled marker per method."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    by_label: dict[str, dict[str, CellComparison]] = {}
    shown = [cell for cell in cells if cell.ours is not None and cell.metric in (x, y)]
    label_of = labeller(shown)
    for cell in shown:
        by_label.setdefault(label_of(cell), {})[cell.metric] = cell
    for index, (label, pair) in enumerate((name, both) for name, both in by_label.items() if len(both) == 2):
        across, up = pair[x].ours, pair[y].ours
        assert across is not None and up is not None
        marker, colour = MARKERS[index % len(MARKERS)], PALETTE[index % len(PALETTE)]
        axes.plot(across.value, up.value, marker, color=colour, markersize=9, label=label)
    for axis, metric in ((axes.xaxis, x), (axes.yaxis, y)):
        found = next(cell for cell in cells if cell.metric == metric)
        axis.set_label_text(f"{found.metric_label}" + (f" ({found.unit})" if found.unit else ""))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title(title)
    return figure
