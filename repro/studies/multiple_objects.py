"""Figure 6 of ScoreCAM++, measured: how many of an image's objects a map covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data import load_dataset
from repro.evidence.comparison import sample_key
from repro.evidence.intervals import paired_interval
from repro.studies.scorecampp import AREA_MATCHED, AreaControl, Column, Measured, scaled
from repro.studies.subject import Subject, SubjectSettings, prepare_subject
from repro.training import RunStore, predicted_classes


def objects_subject(settings: SubjectSettings, several: str, store: RunStore) -> Subject:
    """The network of `settings`, explained on those images of data set `several` that hold two or more boxes.

    Raises:
        ValueError: the data set has no boxes, or no image with several.
    """
    subject = prepare_subject(settings.model_copy(update={"images": 1}), store)
    found = load_dataset(several, split="test", size=subject.classifier.input_size, seed=settings.seed)
    if found.boxes is None:
        raise ValueError(f"data set '{several}' has no boxes; figure 6 needs images with several framed objects")
    with_several = [index for index, boxes in enumerate(found.boxes) if len(boxes) > 1][: settings.images]
    if not with_several:
        raise ValueError(f"data set '{several}' has no image with several boxes")
    images = found.subset(with_several)
    predicted = predicted_classes(subject.classifier, images.images)
    return replace(subject, settings=settings, images=images, targets=predicted)


def objects_covered(
    subject: Subject, maps: Mapping[str, Float[Tensor, "n 1 h w"]], threshold: float, coverage: float
) -> Measured:
    """Share of objects covered per image, in %, and mean map area.

    Args:
        subject: images with boxes.
        maps: raw maps by method, at image size.
        threshold: share (0..1) of the map's maximum above which a pixel counts.
        coverage: share (0..1) of a box's pixels that must count.
    """
    measured = Measured()
    for method, values in maps.items():
        masks = scaled(values)
        column = Column(method, method)
        shares = [
            100 * torch.stack([_inside(mask[0], box) > coverage for box in boxes]).double().mean()
            for mask, boxes in zip(masks > threshold, subject.images.boxes or [], strict=True)
        ]
        measured.add(subject, column, "objects_covered", torch.stack(shares))
        measured.add(subject, column, "mean_map_area", 100 * masks.mean(dim=(1, 2, 3)))
    return measured


def coverage_at_equal_area(measured: Measured, seed: int) -> AreaControl:
    """Objects covered by ScoreCAM++ beside those of Score-CAM maps of its area, paired over images."""
    values = {
        method: measured.samples[sample_key(method, "objects_covered", seed)]
        for method in ("scorecam", AREA_MATCHED, "scorecampp")
    }
    difference = paired_interval(values["scorecampp"], values[AREA_MATCHED], over="images")
    plain, matched, own = (sum(numbers) / len(numbers) for numbers in values.values())
    images = len(values["scorecampp"])
    return AreaControl(
        "objects covered",
        "%",
        plain,
        matched,
        own,
        difference.value,
        difference.low,
        difference.high,
        "higher",
        images,
        images,
    )


def _inside(mask: Tensor, box: Tensor) -> Tensor:
    """Share of a half-open box's pixels that are set."""
    x0, y0, x1, y1 = (int(value) for value in box)
    return mask[y0:y1, x0:x1].double().mean()
