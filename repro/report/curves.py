"""Lines over training steps, and clouds of points, in the house style."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from repro.report.figures import MARKERS, PALETTE

LINES = ("-", "--", ":", "-.")


def line_panels(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    steps: Sequence[float],
    title: str,
    *,
    y_label: str = "",
    x_label: str = "step",
    reference: float | None = None,
    share_y: bool = False,
    columns: int = 4,
) -> Figure:
    """One panel per entry, one line per series; lines differ in colour, dash and marker.

    Args:
        panels: panel title → series name → values at `steps`.
        steps: positions on the horizontal axis.
        title: what to see.
        y_label: quantity and unit.
        x_label: of the horizontal axis.
        reference: height of a horizontal grey line, e.g. equality.
        share_y: whether panels have one scale.
        columns: panels per row.
    """
    wide = min(columns, len(panels))
    tall = -(-len(panels) // wide)
    figure, grid = plt.subplots(tall, wide, figsize=(3.1 * wide + 1.2, 2.6 * tall + 0.9), sharey=share_y, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, series) in zip(grid.flat, panels.items(), strict=False):
        if reference is not None:
            axes.axhline(reference, color="0.5", linewidth=1.5)
        for i, (label, values) in enumerate(series.items()):
            turn = i // len(PALETTE)  # beyond eight lines colours repeat, dashes and markers move on
            style, marker = LINES[(i + turn) % len(LINES)], MARKERS[(i + turn) % len(MARKERS)]
            axes.plot(steps, values, style, marker=marker, markersize=4, color=PALETTE[i % len(PALETTE)], label=label)
        axes.set_title(name)
        axes.set_xlabel(x_label)
    grid[0][0].set_ylabel(y_label)
    entries = next(iter(panels.values()))
    if len(entries) > 1:
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def cloud_panels(
    projections: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Per projection two panels: coloured by class (filled: real, hollow: generated), and real against generated.

    Args:
        projections: name → real (n, 2) and generated (m, 2) points.
        labels: class indices of the real and of the generated points.
        classes: names by index.
        title: what to see.
    """
    figure, grid = plt.subplots(len(projections), 2, figsize=(11, 4.4 * len(projections)), squeeze=False)
    colours = plt.get_cmap("tab10")(np.arange(len(classes)) % 10)
    for (left, right), (name, (real, made)) in zip(grid, projections.items(), strict=True):
        for c, label in enumerate(classes):
            own_real, own_made = real[labels[0] == c], made[labels[1] == c]
            left.scatter(*own_real.T, s=12, color=colours[c], label=label)
            left.scatter(*own_made.T, s=16, facecolors="none", edgecolors=colours[c], linewidths=0.8)
            centre = np.median(own_real, axis=0)
            left.annotate(label, centre, fontsize=8, fontweight="bold", ha="center")
        right.plot(*real.T, "o", markersize=3, color=PALETTE[5], label="real")
        right.plot(*made.T, "x", markersize=4, color=PALETTE[0], label="generated")
        right.legend(fontsize=8)
        left.set_title(f"{name}: by class (filled real, hollow generated)")
        right.set_title(f"{name}: real and generated")
        for axes in (left, right):
            axes.set_xticks([])
            axes.set_yticks([])
    figure.suptitle(title, fontsize=11)
    return figure
