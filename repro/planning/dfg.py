"""What a DFG table trains, with stand-in images and random source networks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from repro.files import content_hash
from repro.models.split_classifier import SplitClassifier, resnet50_split, split_classifier
from repro.planning.requests import Images, Request
from repro.planning.sampled_run import Kind
from repro.planning.stand_ins import shape_of, stand_in
from repro.planning.work import Work
from repro.studies.dfg import DFGParameters, Wanted, targets_of, wanted_of
from repro.studies.dfg_protocol import Protocol, Replica, border, paper_settings, plan, protocol_of, subset_of
from repro.training.baselines import pretrain_source
from repro.training.device import device
from repro.training.dfg import group_size, train_method
from repro.training.dfg_settings import DFGSettings
from repro.training.run_store import Run
from repro.training.sampling import ReplicaTasks, ResidentData
from repro.vocabulary import DatasetName, DFGMethod


def dfg_request(id: str, parameters: Mapping[str, Any]) -> Request:
    """Works of a DFG notebook: source networks and every training of every method."""
    request = Request()
    wanted = wanted_of(id, parameters)
    for target in targets_of(parameters) if wanted else []:
        study = PlannedStudy(DFGParameters.of(parameters, target), parameters["schedule"])
        request.images |= {study.train, study.test}
        if study.protocol.architecture == "resnet50":
            request.notes.append("calibrated with random weights; the run itself needs ResNet-50's from torchvision")
        else:
            request.images.add(study.source)
            request.works += [study.pretraining(seed) for seed in sorted({one.source for one in study.layout})]
        for one in wanted:
            request.works += study.trainings(one)
    return request


class PlannedStudy:
    """The plan of one target data set, as `repro.studies.dfg.prepare_study` lays it out, without its data."""

    def __init__(self, settings: DFGParameters, changes: Mapping[str, int | float]) -> None:
        self.settings = settings
        self.protocol: Protocol = protocol_of(settings.target, settings.readings)
        self.schedule = paper_settings(settings.target, changes)
        source = settings.source or self.protocol.source
        self.train = self._images(settings.target, "train", None)
        self.test = self._images(settings.target, "test", settings.test_images)
        self.source = self._images(source, "train", settings.source_images)
        self.device = device()

    def _images(self, name: DatasetName, split: str, limit: int | None) -> Images:
        return Images(name, split, limit, None if border(name, self.protocol) else self.protocol.size)

    @cached_property
    def layout(self) -> list[Replica]:
        """The trainings of one method."""
        settings = self.settings
        classes = shape_of(*self.train).classes
        return plan(
            classes,
            settings.majorities,
            settings.combinations,
            settings.repeats,
            self.protocol.ratio,
            settings.seed,
            settings.own_sources,
        )

    def tasks(self, layout: Sequence[Replica]) -> ReplicaTasks:
        """Stand-in tasks of some trainings."""
        train, test = self._resident(self.train), self._resident(self.test)
        held_out, seed = self.settings.held_out, self.settings.seed
        parts = [subset_of(train.labels.cpu(), one, self.protocol, held_out, seed) for one in layout]
        return ReplicaTasks(
            train,
            test,
            shape_of(*self.train).classes,
            [part[0] for part in parts],
            [part[1] for part in parts],
            [one.seed for one in layout],
            self.protocol.augmentation,
        )

    def _resident(self, images: Images) -> ResidentData:
        found = stand_in(*images)
        side = found.images.shape[-1] + 2 * border(images.dataset, self.protocol)  # type: ignore[arg-type]
        channels = 1 if self.protocol.architecture == "lenet5" else 3
        pixels = found.images[:1, :channels, :1, :1].expand(len(found), channels, side, side)
        return ResidentData(pixels, found.labels).to(self.device)

    def source_network(self) -> SplitClassifier:
        """A source network with random weights."""
        if self.protocol.architecture == "resnet50":
            return resnet50_split(1000).eval()
        classes = shape_of(*self.source).classes
        readings = self.settings.readings
        return split_classifier(self.protocol.architecture, classes, readings.hidden, readings.dropout).eval()

    def pretraining(self, seed: int) -> Work:
        """Training of a source network."""
        recipe = self.settings.source_recipe(self.schedule)
        name = f"source {content_hash([self.source, recipe.model_dump(mode='json'), seed])}"

        def do(run: Run) -> dict[str, Tensor]:
            train, test = self._resident(self.source), self._resident(self.source._replace(split="test", limit=1000))
            every = torch.arange(len(train.labels))
            classes = shape_of(*self.source).classes
            tasks = ReplicaTasks(train, test, classes, [every], [every[:0]], [0], self.protocol.augmentation)
            return pretrain_source(tasks, recipe, self.settings.readings, run)

        return Work(name, name, do, kind_of_cycle(recipe, updates_weights=False))

    @cached_property
    def group_size(self) -> int:
        """How many trainings run at once: one on a CPU, as many as memory holds on CUDA."""
        if self.device.type != "cuda":
            return 1
        one = self.tasks(self.layout[:1])
        return group_size(self.source_network(), one, len(self.layout), self.schedule, self.settings.readings)

    def trainings(self, wanted: Wanted) -> Iterator[Work]:
        """One work per training; where several are trained at once, each is its share of the group."""
        positions = range(len(self.layout)) if wanted.only is None else wanted.only
        chosen = [self.layout[position] for position in positions if position < len(self.layout)]
        size = min(self.group_size, len(chosen))
        schedule = self.schedule
        if wanted.rho is not None:
            schedule = schedule.model_copy(update={"rho": wanted.rho})
        kind = kind_of_cycle(schedule, updates_weights=wanted.method == "dfg")
        own = self.settings.model_dump(mode="json", exclude={"majorities", "combinations", "repeats"})
        same = content_hash([own, wanted.method, schedule.model_dump(mode="json")])
        # ρ changes no arithmetic, so all of them are calibrated once.
        cost = content_hash([own, wanted.method, schedule.model_dump(mode="json", exclude={"rho"})])

        for one in chosen:
            members = [one, *[other for other in chosen if other is not one]][:size]
            yield Work(
                key=f"{same} {one}",
                alike=f"{cost} {len(one.majority)} x{size}",
                do=partial(self._train, wanted.method, schedule, members),
                kind=kind,
                share=1 / size,
            )

    def _train(
        self, method: DFGMethod, schedule: DFGSettings, members: Sequence[Replica], run: Run
    ) -> dict[str, Tensor]:
        tasks = self.tasks(members)
        return train_method(method, self.source_network(), tasks, schedule, self.settings.readings, run)


def kind_of_cycle(schedule: DFGSettings, *, updates_weights: bool) -> Kind:
    """Cycles that evaluate, and those that update filter weights, cost more than others."""

    def kind(cycle: int) -> Hashable:
        step = (cycle + 1) * schedule.cycle
        return schedule.evaluate_after(cycle), updates_weights and step % schedule.filter_weights_every == 0

    return kind
