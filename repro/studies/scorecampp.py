"""Rows of ScoreCAM++'s tables: faithfulness metrics of many methods, and what is left once map area is matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data.load import load_dataset
from repro.evidence.comparison import sample_key
from repro.evidence.published import own_label
from repro.evidence.record import Setting
from repro.evidence.statistics import paired_interval
from repro.metrics.faithfulness import FaithfulnessSettings, explanation_maps
from repro.metrics.faithfulness_metrics import AverageDrop, AverageLogitDrop, IncreaseInConfidence, WinRate
from repro.models.class_scores import ScoreSpace
from repro.studies.explanations import (
    AREA_MATCHED,
    CONTROLS,
    Explanations,
    Subject,
    SubjectSettings,
    area_reached,
    prepare_subject,
)
from repro.studies.rows import RowCollector
from repro.training.classifier import predicted_classes
from repro.training.run_store import RunStore


@dataclass(frozen=True)
class Column:
    """One column of a printed table: the explained method and the cell it stands for."""

    explained: str
    """Method id of `repro.studies.explanations`."""
    method: str
    """Method id of the published table."""
    setting: Setting = field(default_factory=dict)


def columns(methods: Sequence[str]) -> list[Column]:
    """Columns whose printed id is the method's own."""
    return [Column(method, method) for method in methods]


def gate_columns(gates: Sequence[str]) -> list[Column]:
    """Table 5: ScoreCAM++ by gate activation."""
    return [
        Column("scorecampp" if gate == "tanh" else f"scorecampp_{gate}", "scorecampp", {"gate": gate}) for gate in gates
    ]


GATING_COLUMNS = [
    Column("scorecampp", "scorecampp", {"gated": "mask_and_map"}),
    Column("scorecampp_mask_only", "scorecampp", {"gated": "mask"}),
]
"""Table 6."""


class Measured(RowCollector):
    """Rows of a subject's explanations and the values per image behind them."""

    def values(
        self, subject: Subject, column: Column, metric: str, values: Float[Tensor, " n"], unit: str = "%"
    ) -> None:
        """Add the mean of one method's values per image; undefined ones (NaN) are left out of mean and n.

        Raises:
            ValueError: no value is defined.
        """
        defined = values[~values.isnan()].double()
        if not len(defined):
            raise ValueError(f"{metric} of {column.explained} is undefined on every image")
        settings = subject.settings
        self.add(
            column.method,
            metric,
            defined.mean().item(),
            dataset=settings.dataset,
            network=settings.architecture,
            seed=settings.seed,
            setting=column.setting,
            samples=defined.tolist(),
            unit=unit,
        )


def faithfulness(
    subject: Subject,
    explanations: Explanations,
    table: Sequence[Column],
    space: ScoreSpace,
    *,
    other_space: bool = True,
) -> Measured:
    """Average Drop, Increase in Confidence and Win % (appendix A) of the columns of one table.

    Rows in `space` stand for the printed cells. With `other_space` the same metrics on the other scale follow, marked
    by the setting `score_space`. Win % is decided among the columns of this table only.
    """
    measured = Measured()
    _add_space(measured, subject, explanations, table, space)
    for column in table:
        area = 100 * explanations.column("area", column.explained)
        measured.values(subject, column, "mean_map_area", area)
        for name in ("insertion", "deletion"):
            if name in explanations.tensors:
                measured.values(
                    subject, column, f"{name}_auc", explanations.column(name, column.explained), "probability"
                )
    if other_space:
        other: ScoreSpace = "logit" if space == "probability" else "probability"
        marked = [Column(c.explained, c.method, c.setting | {"score_space": other}) for c in table]
        _add_space(measured, subject, explanations, marked, other)
    return measured


def _add_space(
    measured: Measured, subject: Subject, explanations: Explanations, table: Sequence[Column], space: ScoreSpace
) -> None:
    original = explanations.tensors[f"original_{space}"]
    kept = torch.stack([explanations.column(f"kept_{space}", column.explained) for column in table], dim=1)
    win = WinRate()
    win.update(kept)
    for index, column in enumerate(table):
        drop, increase = AverageDrop(), IncreaseInConfidence()
        drop.update(original, kept[:, index])
        increase.update(original, kept[:, index])
        measured.values(subject, column, "average_drop", drop.values())
        measured.values(subject, column, "increase_in_confidence", increase.values())
        measured.values(subject, column, "win", win.values()[:, index])


def logit_drop(subject: Subject, explanations: Explanations, table: Sequence[Column]) -> Measured:
    """Average Drop in Logit (§6.4): the target's logit lost when the map's region is removed; higher is better."""
    measured = Measured()
    for column in table:
        metric = AverageLogitDrop()
        metric.update(explanations.tensors["original_logit"], explanations.column("removed_logit", column.explained))
        measured.values(subject, column, "average_drop_in_logit", metric.values(), "logit")
        measured.values(subject, column, "mean_map_area", 100 * explanations.column("area", column.explained))
    return measured


BOX_IOUS = (0.3, 0.5, 0.7)
NAMES = {"scorecam": "Score-CAM", "scorecampp": "ScoreCAM++"}
COMPARABLE = 2
"""Images below which no interval exists."""
CONTROLLED = (
    ("average_drop", "lower", "%"),
    ("increase_in_confidence", "higher", "%"),
    ("average_drop_in_logit", "higher", "logit"),
)
"""Metrics that a control is compared on, the better direction and the unit."""


@dataclass(frozen=True)
class AreaControl:
    """A method against the maps of another that have exactly its area: the answer to "is it only wider?"."""

    metric: str
    better: str
    unit: str
    method: str
    """Whose area is taken."""
    control: str
    matched: Mapping[str, list[float]]
    """Values per image of both, where the area was met."""
    left_out: Mapping[str, list[float]]
    """Values per image of both, where no power of the control's map has the area."""

    @property
    def sentence(self) -> str:
        """The finding in words, decided by the interval alone."""
        name, method, control = self.metric.replace("_", " "), NAMES[self.method], own_label(self.control)
        ours, theirs = self.matched[self.method], self.matched[self.control]
        of = len(ours) + len(self.left_out[self.method])
        count = f"n = {len(ours)} of {of} images whose area could be matched"
        if len(ours) < COMPARABLE:
            return f"{name}: {method} is not compared with {control}; {count}, and an interval needs {COMPARABLE}."
        difference = paired_interval(ours, theirs, over="images")
        low, high = difference.low, difference.high
        gained, lost = (high < 0, low > 0) if self.better == "lower" else (low > 0, high < 0)
        outcome = "is better than" if gained else "is worse than" if lost else "cannot be told from"
        rest = self.left_out[self.method]
        described = f"; {fmean(rest):.2f} {self.unit} on the others" if rest else ""
        return (
            f"{name}: at equal map area {method} {outcome} {control} (difference {difference.value:+.2f} {self.unit}, "
            f"95 % interval {low:+.2f} to {high:+.2f}, {count}; {method} has {fmean(ours):.2f} {self.unit} "
            f"there{described})."
        )


def area_controls(
    subject: Subject, explanations: Explanations, space: ScoreSpace
) -> tuple[list[AreaControl], Measured]:
    """Every control beside the method whose area it has, paired over images, on every metric of the paper.

    Comparisons are made on the images whose area could be matched, and say how many; a control that matches none says
    so and leaves the others alone. The controls' rows are over all images, on both scales.
    """
    found, collected = [], Measured()
    for control, (source, like) in CONTROLS.items():
        table = columns([name for name in dict.fromkeys((control, source, like)) if name in explanations.methods])
        scored = [faithfulness(subject, explanations, table, space), logit_drop(subject, explanations, table)]
        for part in scored:
            known = {(row.method, row.metric, str(row.setting)) for row in collected.rows}
            collected.rows += [
                row
                for row in part.rows
                if row.method == control and (row.method, row.metric, str(row.setting)) not in known
            ]
            collected.samples |= {key: values for key, values in part.samples.items() if key.startswith(f"{control}|")}
        reached = area_reached(explanations, control)
        for metric, better, unit in CONTROLLED:
            if metric == "increase_in_confidence" and control != AREA_MATCHED:
                continue  # it counts few images, and tells controls apart worst
            values = {name: _per_image(explanations, name, metric, space) for name in (like, control)}
            defined = ~torch.stack(list(values.values())).isnan().any(dim=0)
            halves = [
                {name: each[chosen & defined].tolist() for name, each in values.items()}
                for chosen in (reached, ~reached)
            ]
            found.append(AreaControl(metric, better, unit, like, control, *halves))
    return found, collected


def _per_image(explanations: Explanations, method: str, metric: str, space: ScoreSpace) -> Float[Tensor, " n"]:
    """One metric of one method, image by image."""
    if metric == "average_drop_in_logit":
        logit = AverageLogitDrop()
        logit.update(explanations.tensors["original_logit"], explanations.column("removed_logit", method))
        return logit.values()
    chosen = AverageDrop() if metric == "average_drop" else IncreaseInConfidence()
    chosen.update(explanations.tensors[f"original_{space}"], explanations.column(f"kept_{space}", method))
    return chosen.values()


def box_accuracy(subject: Subject, explanations: Explanations, table: Sequence[Column]) -> Measured:
    """MaxBoxAccV2 of every method's maps, in %: do the explanations lie on the framed objects?

    Boxes are those of all contours at the level that suits each IoU (0.3, 0.5, 0.7) best on these images; half-open,
    not the benchmark's inclusive ones. Samples are the mean of an image's three hits, in %.

    Raises:
        ValueError: the data set has no boxes.
    """
    if "box_iou" not in explanations.tensors:
        raise ValueError(f"data set '{subject.settings.dataset}' has no boxes; localisation needs framed objects")
    measured = Measured()
    for column in table:
        overlap = explanations.column("box_iou", column.explained)
        levels = [int((overlap >= least).sum(dim=0).argmax()) for least in BOX_IOUS]
        hits = torch.stack([overlap[:, level] >= least for level, least in zip(levels, BOX_IOUS, strict=True)], dim=1)
        measured.values(subject, column, "max_box_acc_v2", 100 * hits.double().mean(dim=1))
    return measured


def zero_map_share(explanations: Explanations, methods: Mapping[str, str]) -> dict[str, float]:
    """Share of maps in % that are zero everywhere (area 0), by label: what eq. (10) to the letter leads to."""
    return {
        label: 100 * (explanations.column("area", method) == 0).double().mean().item()
        for label, method in methods.items()
    }


def map_areas(subject: Subject, maps: Mapping[str, Float[Tensor, "n 1 h w"]], setting: Setting) -> Measured:
    """Mean area of each method's min–max scaled map, in % of the image (figures 2–4)."""
    measured = Measured()
    for method, values in maps.items():
        area = scaled(values).mean(dim=(1, 2, 3))
        measured.values(subject, Column(method, method, setting), "mean_map_area", 100 * area)
    return measured


def map_correlations(
    subject: Subject, maps: Mapping[str, Float[Tensor, "n 1 h w"]], table: Sequence[Column], reference: str
) -> Measured:
    """Pearson correlation over pixels of each column's map with the reference's, per image (figure 5)."""
    measured = Measured()
    centred = {name: values.flatten(1) - values.flatten(1).mean(dim=1, keepdim=True) for name, values in maps.items()}
    for column in table:
        if column.explained != reference:
            correlation = torch.nn.functional.cosine_similarity(centred[column.explained], centred[reference], dim=1)
            measured.values(subject, column, "correlation_with_mish", correlation, "")
    return measured


def scaled(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Min–max scaled maps as the metrics see them."""
    return explanation_maps(maps, (maps.shape[2], maps.shape[3]), FaithfulnessSettings()).masks


# Figure 6 of ScoreCAM++, measured: how many of an image's objects a map covers.


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
        measured.values(subject, column, "objects_covered", torch.stack(shares))
        measured.values(subject, column, "mean_map_area", 100 * masks.mean(dim=(1, 2, 3)))
    return measured


def coverage_at_equal_area(measured: Measured, seed: int) -> AreaControl:
    """Objects covered by ScoreCAM++ beside those of Score-CAM maps of its area, paired over images."""
    values = {
        name: measured.samples[sample_key(name, "objects_covered", seed)] for name in ("scorecampp", AREA_MATCHED)
    }
    nothing: dict[str, list[float]] = {name: [] for name in values}
    return AreaControl("objects_covered", "higher", "%", "scorecampp", AREA_MATCHED, values, nothing)


def _inside(mask: Tensor, box: Tensor) -> Tensor:
    """Share of a half-open box's pixels that are set."""
    x0, y0, x1, y1 = (int(value) for value in box)
    return mask[y0:y1, x0:x1].double().mean()
