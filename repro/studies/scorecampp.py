"""Rows of ScoreCAM++'s tables: faithfulness metrics of many methods, and what is left once map area is matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data.load import load_dataset
from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting
from repro.evidence.statistics import paired_interval
from repro.metrics.faithfulness import FaithfulnessSettings, ScoreSpace, explanation_maps
from repro.metrics.faithfulness_metrics import AverageDrop, AverageLogitDrop, IncreaseInConfidence, WinRate
from repro.studies.explanations import (
    AREA_MATCHED,
    Explanations,
    Subject,
    SubjectSettings,
    area_reached,
    prepare_subject,
)
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


@dataclass
class Measured:
    """Rows and the values per image behind them."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, subject: Subject, column: Column, metric: str, values: Float[Tensor, " n"], unit: str = "%") -> None:
        """Add the mean of one method's values per image; undefined ones (NaN) are left out of mean and n.

        Raises:
            ValueError: no value is defined.
        """
        defined = values[~values.isnan()].double()
        if not len(defined):
            raise ValueError(f"{metric} of {column.explained} is undefined on every image")
        seed = subject.settings.seed
        self.rows.append(
            Row(
                method=column.method,
                metric=metric,
                value=defined.mean().item(),
                dataset=subject.settings.dataset,
                network=subject.settings.architecture,
                seed=seed,
                setting=column.setting,
                n=len(defined),
                unit=unit,
            )
        )
        self.samples[sample_key(column.method, metric, seed, column.setting)] = defined.tolist()


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
        measured.add(subject, column, "mean_map_area", area)
        for name in ("insertion", "deletion"):
            if name in explanations.tensors:
                measured.add(subject, column, f"{name}_auc", explanations.column(name, column.explained), "probability")
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
        measured.add(subject, column, "average_drop", drop.values())
        measured.add(subject, column, "increase_in_confidence", increase.values())
        measured.add(subject, column, "win", win.values()[:, index])


def logit_drop(subject: Subject, explanations: Explanations, table: Sequence[Column]) -> Measured:
    """Average Drop in Logit (§6.4): the target's logit lost when the map's region is removed; higher is better."""
    measured = Measured()
    for column in table:
        metric = AverageLogitDrop()
        metric.update(explanations.tensors["original_logit"], explanations.column("removed_logit", column.explained))
        measured.add(subject, column, "average_drop_in_logit", metric.values(), "logit")
        measured.add(subject, column, "mean_map_area", 100 * explanations.column("area", column.explained))
    return measured


@dataclass(frozen=True)
class AreaControl:
    """ScoreCAM++ against plain Score-CAM maps of exactly its area: the answer to "is it only wider?"."""

    metric: str
    unit: str
    plain: float
    matched: float
    scorecampp: float
    difference: float
    """ScoreCAM++ minus the area-matched control, paired over images."""
    low: float
    high: float
    better: str
    images: int
    """Images whose area could be matched; the others are left out of the comparison."""
    of: int
    """Images explained."""

    @property
    def sentence(self) -> str:
        """The finding in words, decided by the interval alone."""
        gained = self.high < 0 if self.better == "lower" else self.low > 0
        lost = self.low > 0 if self.better == "lower" else self.high < 0
        outcome = "is better than" if gained else "is worse than" if lost else "cannot be told from"
        return (
            f"{self.metric}: at equal map area ScoreCAM++ {outcome} plain Score-CAM "
            f"(difference {self.difference:+.2f} {self.unit}, 95 % interval {self.low:+.2f} to {self.high:+.2f}, "
            f"n = {self.images} of {self.of} images whose area could be matched)."
        )


def area_control(subject: Subject, explanations: Explanations, space: ScoreSpace) -> tuple[list[AreaControl], Measured]:
    """Compare ScoreCAM++ with the area-matched control on every metric of the paper, paired over images.

    The comparison is made on the images whose area could be matched; the control's rows are over all images.

    Raises:
        ValueError: the area could be matched on no image.
    """
    table = [Column(AREA_MATCHED, AREA_MATCHED), Column("scorecam", "scorecam"), Column("scorecampp", "scorecampp")]
    every = faithfulness(subject, explanations, table, space, other_space=False)
    every_logit = logit_drop(subject, explanations, table)
    matched = explanations.of_images(area_reached(explanations))
    fair = faithfulness(subject, matched, table, space, other_space=False)
    fair_logit = logit_drop(subject, matched, table)
    seed = subject.settings.seed
    found = []
    for metric, better, unit, source in (
        ("average_drop", "lower", "%", fair),
        ("increase_in_confidence", "higher", "%", fair),
        ("average_drop_in_logit", "higher", "logit", fair_logit),
    ):
        values = {c.method: source.samples[sample_key(c.method, metric, seed)] for c in table}
        difference = paired_interval(values["scorecampp"], values[AREA_MATCHED], over="images")
        means = {method: sum(numbers) / len(numbers) for method, numbers in values.items()}
        found.append(
            AreaControl(
                metric.replace("_", " "),
                unit,
                means["scorecam"],
                means[AREA_MATCHED],
                means["scorecampp"],
                difference.value,
                difference.low,
                difference.high,
                better,
                len(values["scorecampp"]),
                len(explanations.tensors["original_logit"]),
            )
        )
    own = [row for row in every.rows + every_logit.rows if row.method == AREA_MATCHED]
    unique = {(row.metric): row for row in own}
    samples = {
        key: values
        for source in (every, every_logit)
        for key, values in source.samples.items()
        if key.startswith(f"{AREA_MATCHED}|")
    }
    return found, Measured(list(unique.values()), samples)


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
        measured.add(subject, Column(method, method, setting), "mean_map_area", 100 * area)
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
            measured.add(subject, column, "correlation_with_mish", correlation, "")
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
