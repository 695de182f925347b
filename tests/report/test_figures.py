"""Saved figures: a palette where it is invisible, true colours where it would show."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from repro.report.plots import png_bytes


def test_plots_get_a_palette_and_pictures_do_not(tmp_path: Path) -> None:
    plot, axes = plt.subplots()
    axes.plot([0, 1], [0, 1], color="#0072B2")
    (tmp_path / "plot.png").write_bytes(png_bytes(plot))
    picture, axes = plt.subplots()
    axes.imshow(np.random.default_rng(0).random((200, 200, 3)))
    (tmp_path / "picture.png").write_bytes(png_bytes(picture))
    modes = {name: Image.open(tmp_path / f"{name}.png").mode for name in ("plot", "picture")}
    assert modes["plot"] == "P" and modes["picture"] in ("RGB", "RGBA")
    blue = np.array([0, 0x72, 0xB2])
    pixels = np.asarray(Image.open(tmp_path / "plot.png").convert("RGB")).reshape(-1, 3).astype(int)
    assert abs(pixels - blue).sum(1).min() <= 6
    plt.close("all")
