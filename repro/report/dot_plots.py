"""Numbers with their intervals as dots, made from the rows of a record."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro.evidence.comparison import CellComparison
from repro.report.figures import MARKERS, PALETTE


def interval_plot(cells: Sequence[CellComparison], metrics: Sequence[str], title: str) -> Figure:
    """One panel per metric: our value with its 95 % interval, the paper's as an open diamond.

    Args:
        cells: comparisons of one table.
        metrics: metric ids, one panel each.
        title: what to see.
    """
    labels = list(dict.fromkeys(cell_label(cell) for cell in cells if cell.metric in metrics and cell.ours))
    height = 0.38 * len(labels) + 1.5
    figure, grid = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics) + 1, height), sharey=True, squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=True):
        _panel(axes, [cell for cell in cells if cell.metric == metric and cell.ours], labels)
    grid[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    return figure


def cell_label(cell: CellComparison) -> str:
    """Method with the axes that vary, e.g. `ScoreCAM++, gate = tanh`."""
    return ", ".join([cell.method_label, *(f"{name} = {value}" for name, value in cell.setting.items())])


def _panel(axes: Axes, cells: Sequence[CellComparison], labels: Sequence[str]) -> None:
    for cell in cells:
        assert cell.ours is not None
        place = labels.index(cell_label(cell))
        low, high = (x if np.isfinite(x) else cell.ours.value for x in (cell.ours.low, cell.ours.high))
        spread = [[cell.ours.value - low], [high - cell.ours.value]]
        axes.errorbar(cell.ours.value, place, xerr=spread, fmt="o", color=PALETTE[0], capsize=3)
        if cell.published:
            axes.plot(cell.published.value, place, "D", mfc="none", color=PALETTE[5], markersize=7)
    axes.set_yticks(range(len(labels)), labels)
    first = cells[0]
    unit = f" ({first.unit})" if first.unit and first.unit not in first.metric_label else ""
    hint = f"\n{first.better} is better" if first.better in ("lower", "higher") else ""
    axes.set_xlabel(f"{first.metric_label}{unit}{hint}")
    axes.plot([], [], "o", color=PALETTE[0], label="ours, 95 % interval")
    if any(cell.published for cell in cells):
        axes.plot([], [], "D", mfc="none", color=PALETTE[5], label="paper")
    axes.legend(fontsize=8)


def scatter(cells: Sequence[CellComparison], x: str, y: str, title: str) -> Figure:
    """Our values of metric `y` over metric `x`, one labelled marker per method."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    by_label: dict[str, dict[str, CellComparison]] = {}
    for cell in cells:
        if cell.ours is not None and cell.metric in (x, y):
            by_label.setdefault(cell_label(cell), {})[cell.metric] = cell
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
