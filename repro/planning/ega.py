"""What an EGA table trains and evaluates, with stand-in images and random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repro.files import content_hash
from repro.planning.requests import Images, Request
from repro.planning.stand_ins import shape_of, stand_in
from repro.planning.work import Work
from repro.studies.cam_methods import MethodSettings, for_classes, method_settings, trained_as
from repro.studies.cam_study import StudySettings, build_network, maps_and_scores
from repro.studies.ega import ENSEMBLES, Trial, ensemble_seeds, trials_of
from repro.studies.localised import measure
from repro.training.cam import prepare_network, train_cam
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
        for seed in _seeds(trial, parameters):
            request.works.append(_training(study, trial.settings, seed))
            request.works += [_evaluation(study, trial.settings, seed, split) for split in evaluated]
    return request


def _seeds(trial: Trial, parameters: Mapping[str, Any]) -> list[int]:
    """Seeds of a trial, with those of the further members of its map ensembles."""
    size = parameters.get("ensemble", 0)
    if not size or trial.method not in ENSEMBLES or trial.setting.get("network") != "alexnet":
        return list(parameters["seeds"])
    return [member for seed in parameters["seeds"] for member in ensemble_seeds(seed, size)]


def _images(study: StudySettings, split: str) -> Images:
    limit = study.train_images if split == "train" else study.test_images
    return Images(study.dataset, split, limit, study.image_size)


def _pretraining(study: StudySettings) -> Work:
    longer = study.training.model_copy(update={"epochs": study.pretrain_epochs, "decay_epochs": ()})
    before = study.model_copy(update={"pretrain_epochs": 0, "training": longer})
    return _training(before, method_settings("cam", longer), 0)


def _name(what: str, study: StudySettings, method: MethodSettings) -> str:
    fields = study.model_dump(mode="json", exclude={"weights", "class_crops"} if what == "train" else {"weights"})
    return f"{what} {content_hash([fields, type(method).__name__, method.model_dump(mode='json')])}"


def _training(study: StudySettings, method: MethodSettings, seed: int) -> Work:
    method = trained_as(method)
    name = _name("train", study, method)

    def do(run: Run) -> dict[str, Tensor]:
        images = stand_in(*_images(study, "train"))
        network = build_network(study.network, len(images.classes), width=study.width, weights=None, seed=seed)
        own = for_classes(method, images.classes)
        return train_cam(network, images, own.training, own.ingredients(), run, seed, own.reduction)

    return Work(f"{name} {seed}", name, do)


def _evaluation(study: StudySettings, method: MethodSettings, seed: int, split: str) -> Work:
    name = _name("evaluate", study, method)
    count = shape_of(*_images(study, split)).images
    batches = math.ceil(count / BATCH)

    def do(run: Run) -> dict[str, Tensor]:
        images = stand_in(*_images(study, split)._replace(limit=min(BATCH, count)))
        network = build_network(study.network, len(images.classes), width=study.width, weights=None, seed=seed)
        own = for_classes(method, images.classes)
        network = prepare_network(network, own.ingredients())
        network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        found: dict[str, Tensor] = {}
        for _ in run.steps(batches, {}, name="batches"):
            found = measure(images, *maps_and_scores(network, images, own, study.class_crops))
        return found

    return Work(f"{name} {split} {seed}", name, do, stored=batches)
