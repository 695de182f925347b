"""Map ensembles: several networks of one method, their scaled maps averaged (Table 5's GAP- and HaS-ensemble)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data import ImageSet
from repro.losses import unit_range
from repro.studies.cam_methods import MethodSettings
from repro.studies.cam_study import CamStudy
from repro.studies.ega import Outcome
from repro.studies.localised import Localised, measure
from repro.training import RunConfig

ENSEMBLES = {"cam": "cam_ensemble", "has": "has_ensemble"}
"""Method id, and that of its ensemble in Table 5."""
_STRIDE = 100


class EnsembleRun(RunConfig):
    """Key of one evaluation of an ensemble."""

    kind: ClassVar[str] = "ensemble"
    trainings: tuple[str, ...]
    """Keys of the members' trainings."""
    data: str
    """Manifest of the evaluated images."""
    class_crops: Literal["ten", "one"]


def ensemble_seeds(seed: int, size: int) -> list[int]:
    """Seeds of the members: the first is that of the single network, and no two ensembles below 100 share one."""
    return [seed + _STRIDE * member for member in range(size)]


def average_maps(members: Sequence[Float[Tensor, "n h w"]]) -> Float[Tensor, "n h w"]:
    """Mean of the members' maps, each scaled to [0, 1] first, so that no member outweighs the others.

    Raises:
        ValueError: there are no members, or their maps have different sides.
    """
    shapes = {tuple(maps.shape) for maps in members}
    if len(shapes) != 1:
        raise ValueError(f"an ensemble needs members with maps of one size, got {sorted(shapes)}")
    return torch.stack([unit_range(maps) for maps in members]).mean(0)


def localise_ensemble(
    study: CamStudy, method: MethodSettings, seed: int, size: int, *, validate: bool = False
) -> Localised:
    """Evaluate `size` trainings of `method` as one: scaled maps averaged, class scores averaged.

    The members differ in their seed alone. Inferred: the paper copies these rows from Hide-and-Seek, whose members also
    differ in the size of the hidden patches.

    Raises:
        ValueError: `size` is below 2.
    """
    if size < 2:
        raise ValueError(f"size is {size}; an ensemble has at least 2 members")
    trained = [study.train(method, member) for member in ensemble_seeds(seed, size)]

    def localise(images: ImageSet) -> Localised:
        config = EnsembleRun(
            trainings=tuple(run.key for run in trained), data=images.manifest, class_crops=study.settings.class_crops
        )
        result = study.store.run(config, lambda run: evaluate(images))
        return Localised(result, result.key, seed)

    def evaluate(images: ImageSet) -> dict[str, Tensor]:
        members = [study.maps_and_scores(method, run, images) for run in trained]
        scores = torch.stack([member.logits for member in members]).mean(0)
        return measure(images, average_maps([member.maps for member in members]), scores)

    held_out = localise(study.images.val) if validate else None
    return replace(localise(study.images.test), held_out=held_out)


def ensembles_of(outcomes: Sequence[Outcome], size: int) -> list[Outcome]:
    """Ensembles of CAM and HaS in the AlexNet column, the only one printed with them, one per seed; none for size 0.

    Held-out images are localised where those of the single networks are.
    """
    return [
        Outcome(
            replace(outcome.trial, method=ENSEMBLES[outcome.trial.method]),
            outcome.study,
            [
                localise_ensemble(
                    outcome.study, outcome.trial.settings, found.seed, size, validate=found.held_out is not None
                )
                for found in outcome.found
            ],
        )
        for outcome in outcomes
        if size and outcome.trial.method in ENSEMBLES and outcome.trial.setting.get("network") == "alexnet"
    ]
