"""House style of the figures: colour-blind-safe, readable in grey print, units and n in sight."""

from __future__ import annotations

import matplotlib as mpl
import seaborn as sns

# Okabe and Ito's eight colours, ordered so that neighbours also differ in lightness.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
HEATMAP = "cividis"
"""Sequential map for heat maps: even in lightness, the same for people with red–green blindness."""
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
