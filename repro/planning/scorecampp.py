"""What a ScoreCAM++ table trains and explains, with stand-in images and random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from repro.metrics.faithfulness import FaithfulnessSettings
from repro.models.classifiers import Classifier, load_classifier
from repro.planning.requests import Images, Request
from repro.planning.stand_ins import shape_of, stand_in
from repro.planning.work import Work
from repro.studies.explanations import (
    AREA_MATCHED,
    BATCH_OF_IMAGES,
    GROUPS,
    PAPER_METHODS,
    ExplanationConfig,
    Subject,
    SubjectSettings,
    make_maps,
    measuring,
)
from repro.studies.scorecampp import gate_columns
from repro.training.classifier import ClassifierSettings, train_classifier
from repro.training.run_store import Run

GATES = ("relu", "sigmoid", "sigmoid_relu", "swish", "mish", "tanh")
FIGURES: Mapping[str, tuple[str, ...]] = {
    "scorecampp/fig2_fig4_qualitative": PAPER_METHODS,
    "scorecampp/fig5_activation_maps": tuple(column.explained for column in gate_columns(GATES)),
    "scorecampp/fig6_multiple_objects": ("scorecam", "scorecampp", AREA_MATCHED),
}
"""Notebooks that make maps without scoring them, and the methods."""


def scorecampp_request(id: str, parameters: Mapping[str, Any]) -> Request:
    """Works of a ScoreCAM++ notebook: (fine-)training of its networks, and explanations."""
    networks = parameters.get("networks") or {"": parameters["architecture"]}
    first, *others = (_of_network(id, {**parameters, "architecture": name}) for name in sorted(set(networks.values())))
    for other in others:
        first.images |= other.images
        first.works += other.works
    return first


def _of_network(id: str, parameters: Mapping[str, Any]) -> Request:
    settings = SubjectSettings.of(parameters)
    explained = parameters.get("several", settings.dataset)
    size = _classifier(settings).input_size
    request = Request(images={Images(explained, "test", settings.images, size)})
    if settings.weights is not None:
        request.notes.append(
            f"calibrated with random weights, whose channels may be constant more or less often; the run itself "
            f"needs '{settings.weights}'"
        )
    if settings.epochs:
        request.images.add(Images(settings.dataset, "train", settings.train_images, size))
        request.works.append(_training(settings))
    if id in FIGURES:
        return _with(request, _maps(id, settings, explained, parameters))
    gates = parameters.get("gates")
    wanted = {column.explained for column in gate_columns(gates)} if gates else {"scorecampp"}
    return _with(request, *(_explanations(settings, group, parameters) for group in GROUPS if wanted & set(group)))


def _with(request: Request, *works: Work) -> Request:
    request.works += works
    return request


def _classifier(settings: SubjectSettings) -> Classifier:
    return load_classifier(
        settings.architecture,
        num_classes=shape_of(settings.dataset, "test", 1, settings.input_size).classes,
        input_size=settings.input_size,
        target_layer=settings.layer,
        seed=settings.seed,
    )


def _subject(settings: SubjectSettings, dataset: str, limit: int) -> Subject:
    classifier = _classifier(settings)
    images = stand_in(dataset, "test", limit, classifier.input_size)
    targets = torch.zeros(len(images), dtype=torch.int64)
    return Subject(settings, classifier, images, targets, 0.0, "stand_in", None)


def _training(settings: SubjectSettings) -> Work:
    recipe = ClassifierSettings.for_architecture(settings.architecture, epochs=settings.epochs, seed=settings.seed)
    fields = settings.model_dump_json(exclude={"images", "layer", "target"})

    def do(run: Run) -> dict[str, Tensor]:
        classifier = _classifier(settings)
        images = stand_in(settings.dataset, "train", settings.train_images, classifier.input_size)
        return train_classifier(run, classifier, images, recipe)

    return Work(f"classifier {fields}", f"classifier {fields}", do)


def _explanations(settings: SubjectSettings, group: Sequence[str], parameters: Mapping[str, Any]) -> Work:
    config = ExplanationConfig(
        subject=settings,
        data="stand_in",
        weights="stand_in",
        methods=tuple(group),
        faithfulness=FaithfulnessSettings(),
        insertion_steps=parameters["insertion_steps"],
        augmented_copies=parameters["augmented_copies"],
        precision=parameters["precision"],
    )

    def do(run: Run) -> dict[str, Tensor]:
        return measuring(_subject(settings, settings.dataset, settings.images), config)(run)

    return Work(config.key, config.key, do)


def _maps(id: str, settings: SubjectSettings, dataset: str, parameters: Mapping[str, Any]) -> Work:
    def do(run: Run) -> dict[str, Tensor]:
        subject = _subject(settings, dataset, settings.images)
        for step in run.steps(math.ceil(len(subject.images) / BATCH_OF_IMAGES), {}, name="images"):
            part = slice(step * BATCH_OF_IMAGES, (step + 1) * BATCH_OF_IMAGES)
            make_maps(subject, part, FIGURES[id], parameters["augmented_copies"], parameters["precision"])
        return {}

    name = f"{id} {settings.architecture}"
    return Work(name, name, do)
