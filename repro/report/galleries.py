"""Images with their class activation maps, one row per image and one column per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from repro.report.plots import HEATMAP, PALETTE

MAP_OPACITY = 0.55


def map_gallery(
    images: UInt8[Tensor, "n 3 h w"],
    maps: Mapping[str, Float[Tensor, "n 1 h w"]],
    row_labels: Sequence[str],
    title: str,
    *,
    cell_inches: float = 1.5,
    boxes: Sequence[Sequence[Sequence[float]]] | None = None,
) -> Figure:
    """Overlay min–max scaled maps on their images; the first column is the image alone.

    Args:
        images: RGB, 0..255.
        maps: by column title, at image size.
        row_labels: one per image, shown left of it.
        title: what to see.
        cell_inches: side of one picture.
        boxes: per image its boxes `x0, y0, x1, y1` in pixels, drawn on the first column.
    """
    rows, columns = len(images), len(maps) + 1
    size = (cell_inches * columns + 1.2, cell_inches * rows + 0.9)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for row in range(rows):
        picture = images[row].permute(1, 2, 0).numpy()
        _show(grid[row][0], picture, "image" if row == 0 else "")
        _frames(grid[row][0], boxes[row] if boxes is not None else [], "white", "-")
        grid[row][0].set_ylabel(row_labels[row], fontsize=9)
        for column, (name, values) in enumerate(maps.items(), start=1):
            _show(grid[row][column], picture, name if row == 0 else "")
            heat = values[row, 0].detach().cpu().numpy()
            heat = (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)
            last = grid[row][column].imshow(heat, cmap=HEATMAP, alpha=MAP_OPACITY, vmin=0, vmax=1)
    bar = figure.colorbar(last, ax=grid, shrink=0.6, pad=0.01)
    bar.set_label("map, min–max scaled (no unit)", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def _show(axes: plt.Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture)
    axes.set_title("\n".join(wrap(title, 18)), fontsize=9, loc="center")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


# Images with true and predicted boxes and masks, one row per image and one column per method.

Masks = Bool[np.ndarray, "n s s"]
Boxes = Sequence[Float[np.ndarray, "k 4"]]


def box_gallery(
    images: UInt8[Tensor, "n 3 h w"],
    truth: Boxes,
    predicted: Mapping[str, tuple[Masks, Boxes]],
    row_labels: Sequence[str],
    title: str,
) -> Figure:
    """Draw true boxes (solid, white) and each method's boxes (dashed) and mask outline (dotted).

    Args:
        images: RGB, 0..255.
        truth: true boxes per image, x0, y0, x1, y1 in pixels of `images`.
        predicted: by column title: masks of any side, and boxes in pixels of `images`.
        row_labels: one per image.
        title: what to see.
    """
    rows, columns = len(images), len(predicted)
    size = (2.1 * columns + 1.0, 2.0 * rows + 1.1)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for row in range(rows):
        picture = images[row].permute(1, 2, 0).numpy()
        for column, (name, (masks, boxes)) in enumerate(predicted.items()):
            axes = grid[row][column]
            _show(axes, picture, name if row == 0 else "")
            _outline(axes, masks[row], picture.shape[:2])
            _frames(axes, truth[row], "white", "-")
            _frames(axes, boxes[row], PALETTE[1], "--")
        grid[row][0].set_ylabel(row_labels[row], fontsize=8)
    handles = [
        Line2D([], [], color="grey", linestyle="-", label="true box (drawn in white)"),
        Line2D([], [], color=PALETTE[1], linestyle="--", label="predicted box"),
        Line2D([], [], color=PALETTE[4], linestyle=":", label="mask"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _outline(axes: Axes, mask: Bool[np.ndarray, "s s"], shape: Sequence[int]) -> None:
    if mask.any() and not mask.all():
        y, x = (np.linspace(0, side - 1, len(mask)) for side in shape)
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[PALETTE[4]], linestyles=":", linewidths=1.6)


def _frames(axes: Axes, boxes: Sequence[Sequence[float]] | np.ndarray, colour: str, style: str) -> None:
    for x0, y0, x1, y1 in boxes:
        frame = plt.Rectangle(
            (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style, linewidth=1.8
        )
        axes.add_patch(frame)
