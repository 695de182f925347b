"""What an EGA table trains and evaluates, with stand-in images and random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from repro.files import content_hash
from repro.planning.requests import Images, Request
from repro.planning.stand_ins import shape_of, stand_in
from repro.planning.work import Work
from repro.studies.cam_study import LocalisationSettings, build_network, maps_and_scores
from repro.studies.ega import ensemble_members, has_ensemble, trials_of
from repro.studies.localised import measure
from repro.training.cam import Method, prepare_network
from repro.training.device import device
from repro.training.ega import CAMSettings, train_ega
from repro.training.run_store import Run

BATCH = 64
"""Images of one timed evaluation step."""


def ega_request(id: str, parameters: Mapping[str, Any]) -> Request:
    """Works of an EGA notebook: pre-training, training and evaluation of every trial and seed."""
    request = Request()
    thresholds = {parameters.get("threshold"), *parameters.get("other_thresholds", ())}
    evaluated = ("test", "val") if "validation" in thresholds else ("test",)
    for trial in trials_of(id, parameters):
        study = trial.study
        request.images |= {_images(study, split) for split in ("train", *evaluated)}
        if study.weights is not None:
            request.notes.append(f"calibrated with random weights; the run itself needs '{study.weights}'")
        if study.pretrain_epochs:
            request.works.append(_pretraining(study))
        wanted = [(trial.settings, seed) for seed in parameters["seeds"]]
        if has_ensemble(trial, size := parameters.get("ensemble", 0)):
            wanted += [one for seed in parameters["seeds"] for one in ensemble_members(trial.settings, seed, size)]
        for settings, seed in dict.fromkeys(wanted):
            request.works.append(_training(study, settings, seed))
            request.works += [_evaluation(study, settings, seed, split) for split in evaluated]
    return request


def _images(study: LocalisationSettings, split: str) -> Images:
    limit = study.train_images if split == "train" else study.test_images
    size = study.image_size if split == "train" else study.evaluated_size
    return Images(study.dataset, split, limit, size)


def _pretraining(study: LocalisationSettings) -> Work:
    longer = study.training.model_copy(update={"epochs": study.pretrain_epochs, "decay_epochs": ()})
    before = study.model_copy(update={"pretrain_epochs": 0, "training": longer})
    return _training(before, CAMSettings(training=longer), 0)


def _name(what: str, study: LocalisationSettings, method: Method) -> str:
    fields = study.model_dump(mode="json", exclude={"weights", "class_crops"} if what == "train" else {"weights"})
    return f"{what} {content_hash([fields, type(method).__name__, method.model_dump(mode='json')])}"


def _training(study: LocalisationSettings, method: Method, seed: int) -> Work:
    method = method.trained_as
    name = _name("train", study, method)

    def do(run: Run) -> dict[str, Tensor]:
        images = stand_in(*_images(study, "train"))
        network = build_network(study.network, len(images.classes), width=study.width, weights=None, seed=seed)
        return train_ega(network, images, method.for_classes(images.classes), run, seed)

    return Work(f"{name} {seed}", name, do)


def _evaluation(study: LocalisationSettings, method: Method, seed: int, split: str) -> Work:
    name = _name("evaluate", study, method)
    count = shape_of(*_images(study, split)).images
    batches = math.ceil(count / BATCH)

    def do(run: Run) -> dict[str, Tensor]:
        images = stand_in(*_images(study, split)._replace(limit=min(BATCH, count)))
        network = build_network(study.network, len(images.classes), width=study.width, weights=None, seed=seed)
        own = method.for_classes(images.classes)
        network = prepare_network(network, own.ingredients())
        network.to(device()).eval()
        found: dict[str, Tensor] = {}
        for _ in run.steps(batches, {}, name="batches"):
            found = measure(
                images, *maps_and_scores(network, images, own, images if study.class_crops == "ten" else None)
            )
        return found

    return Work(f"{name} {split} {seed}", name, do, stored=batches)
