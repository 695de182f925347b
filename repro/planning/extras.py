"""What a notebook does beside training and explaining: drawing figures, rendering embedded images."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import matplotlib.pyplot as plt
from torch import Tensor

from repro.data.load import load_dataset
from repro.data.registry import ENTRIES
from repro.planning.requests import Images
from repro.planning.stand_ins import shape_of
from repro.planning.work import Work
from repro.training.run_store import Run

BATCH = 50
PANELS = 3


def figures_work(id: str, figures: int) -> Work:
    """Drawing and saving `figures` figures of three panels."""

    def do(run: Run) -> dict[str, Tensor]:
        for _ in run.steps(figures, {}, name="figures"):
            figure, panels = plt.subplots(1, PANELS, figsize=(10, 4), squeeze=False)
            for panel in panels[0]:
                for row in range(8):
                    panel.errorbar([row], [row], xerr=[0.5], marker="o", label=str(row))
                panel.set_title("title")
            figure.savefig(io.BytesIO(), dpi=110, bbox_inches="tight")
            plt.close(figure)
        return {}

    return Work(f"figures {id}", f"figures {figures}", do)


def rendering_works(images: Iterable[Images]) -> Iterator[Work]:
    """Rendering of embedded images, which every notebook does anew; stored ones are not timed."""
    for one in sorted(images, key=str):
        if ENTRIES[one.dataset].embedded:
            yield _rendering(one)


def _rendering(images: Images) -> Work:
    count = shape_of(*images).images
    limit = min(BATCH, count)

    def do(run: Run) -> dict[str, Tensor]:
        for _ in run.steps(-(-count // limit), {}, name="rendering"):
            load_dataset(images.dataset, split=images.split, limit=limit, size=images.size)
        return {}

    return Work(f"render {images}", f"render {images}", do)
