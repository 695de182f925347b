"""House style of the figures: colour-blind-safe, readable in grey print, units and n in sight."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from repro.evidence.comparison import CellComparison
from repro.evidence.statistics import Estimate

# Okabe and Ito's eight colours, ordered so that neighbours also differ in lightness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
HEATMAP = "cividis"
"""Sequential map for heat maps: even in lightness, the same for people with red–green blindness."""
_PLOT_COLOURS = 1 << 11
"""More distinct colours than this are a photograph's or a heat map's, which a palette of 256 would band."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def use_house_style() -> None:
    """Set the matplotlib defaults of every notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette=list(PALETTE))
    mpl.rcParams.update(
        {
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "image.cmap": HEATMAP,
            "svg.fonttype": "none",
        }
    )


def png_bytes(figure: Figure) -> bytes:
    """`figure` as a PNG; plots get a palette, which makes it a third as large and changes nothing one can see."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    pixels = Image.open(drawn).convert("RGB")
    if pixels.getcolors(_PLOT_COLOURS) is None:
        return drawn.getvalue()
    pixels.quantize(256).save(small, format="png", optimize=True)
    return small.getvalue()


# Numbers with their intervals as dots, made from the rows of a record.


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
        axes = [f"{name} = {value}" for name, value in cell.axes.items() if name in varying]
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


# Lines over training steps, and clouds of points, in the house style.

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
