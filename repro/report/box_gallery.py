"""Images with true and predicted boxes and masks, one row per image and one column per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from repro.report.figures import PALETTE

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
            axes.imshow(picture)
            _outline(axes, masks[row], picture.shape[:2])
            _frames(axes, truth[row], "white", "-")
            _frames(axes, boxes[row], PALETTE[1], "--")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            if row == 0:
                axes.set_title(name, fontsize=10, loc="center")
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


def _frames(axes: Axes, boxes: Float[np.ndarray, "k 4"], colour: str, style: str) -> None:
    for x0, y0, x1, y1 in np.asarray(boxes):
        frame = plt.Rectangle(
            (x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linestyle=style, linewidth=1.8
        )
        axes.add_patch(frame)
