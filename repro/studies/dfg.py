"""Table 2 of DFG as trainings of the run store: every method on every class combination, shared by all notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import pad

from repro.data.images import ImageSet
from repro.evidence.record import Setting
from repro.files import content_hash
from repro.models.split_classifier import SplitClassifier, resnet50_split
from repro.report.experiment import Experiment
from repro.studies.dfg_protocol import (
    PROTOCOLS,
    Protocol,
    Replica,
    align_head,
    border,
    load_images,
    paper_settings,
    plan,
    subset_of,
)
from repro.training.baselines import load_source, pretrain_source
from repro.training.dfg_settings import DFGReadings, DFGSettings
from repro.training.methods import replica_chunks, train_method
from repro.training.run_store import Run, RunConfig, RunResult, RunStore
from repro.training.sampling import ResidentData
from repro.training.tasks import ReplicaTasks, resident
from repro.vocabulary import DatasetName, DFGMethod, DFGTarget


class StudySettings(BaseModel):
    """What a notebook's parameters say about data and repetition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: DFGTarget
    source: DatasetName | None = None
    """Source data set in place of the paper's; None is the paper's."""
    majorities: tuple[int, ...] = (2, 8)
    """Numbers of majority classes."""
    combinations: int | None = None
    """Class combinations per number of majority classes, None for all of them."""
    repeats: int = 1
    """Seeds of the first combination; of everything where the set is balanced."""
    held_out: float = 0.0
    """Share of the chosen training images kept apart for choosing a model."""
    source_images: int | None = None
    source_iterations: int = 20_000
    source_lr: float = 1e-3
    """The paper gives no recipe for the source; Adam with DFG's momenta."""
    test_images: int | None = None
    reading: Literal["paper", "released"] = "paper"
    filter_weight_images: int | None = None
    """Images per class in eq. (6); None is the reading's own."""
    seed: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, Any], target: DFGTarget | None = None) -> "StudySettings":
        """From a notebook's parameters of the same names; `target` where the notebook has several."""
        own = {name: value for name, value in parameters.items() if name in cls.model_fields}
        return cls.model_validate(own if target is None else own | {"target": target})

    @property
    def readings(self) -> DFGReadings:
        """The readings in force."""
        base = DFGReadings.paper() if self.reading == "paper" else DFGReadings.released()
        if self.filter_weight_images is None:
            return base
        return base.model_copy(update={"filter_weight_images": self.filter_weight_images})


class SourceRun(RunConfig):
    """Key of a source network."""

    kind: ClassVar[str] = "dfg_source"
    data: str
    settings: DFGSettings
    hidden: tuple[int, int]
    dropout: float
    seed: int


class DFGRun(RunConfig):
    """Key of one training, or of a group trained at once (`replicas` of more than one)."""

    kind: ClassVar[str] = "dfg"
    method: DFGMethod
    source: str
    train: str
    test: str
    majority_images: int
    ratio: float
    replicas: tuple[Replica, ...]
    held_out: float
    subset_seed: int
    settings: DFGSettings
    readings: DFGReadings


@dataclass(frozen=True, eq=False)
class Study:
    """Data, source network and plan of one target data set."""

    settings: StudySettings
    protocol: Protocol
    schedule: DFGSettings
    readings: DFGReadings
    source: SplitClassifier
    source_key: str
    source_name: DatasetName
    shared_classes: int
    """Classes that source and target have in common by name."""
    train: ImageSet
    test: ImageSet
    plan: list[Replica]
    tasks: ReplicaTasks

    @property
    def classes(self) -> list[str]:
        """Names of the target's classes."""
        return self.train.classes

    def config(self, method: DFGMethod, replicas: Sequence[int], schedule: DFGSettings) -> DFGRun:
        """The run-store key of some replicas of the plan."""
        return DFGRun(
            method=method,
            source=self.source_key,
            train=self.train.manifest,
            test=self.test.manifest,
            majority_images=self.protocol.majority_images,
            ratio=self.protocol.ratio,
            replicas=tuple(self.plan[r] for r in replicas),
            held_out=self.settings.held_out,
            subset_seed=self.settings.seed,
            settings=schedule,
            readings=self.readings,
        )


@dataclass(frozen=True, eq=False)
class Trained:
    """One finished training."""

    index: int
    """Position in the study's plan; the seed of its rows, so that methods are paired by combination."""
    replica: Replica
    result: RunResult
    network: SplitClassifier
    """C(E(·)), in evaluation mode."""


def prepare_study(settings: StudySettings, changes: Mapping[str, int | float], store: RunStore) -> Study:
    """Load source and target, pre-train the source network, and lay out the plan.

    Args:
        settings: data and repetition.
        changes: fields of `DFGSettings` that differ from Appendix A; empty is the paper's schedule.
        store: where trainings are kept.

    Raises:
        ValueError: a field of `changes` is unknown, or data are missing.
    """
    protocol, readings = PROTOCOLS[settings.target], settings.readings
    schedule = paper_settings(settings.target, changes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = load_images(settings.target, "train", None, protocol, settings.seed)
    test = load_images(settings.target, "test", settings.test_images, protocol, settings.seed)
    source, key, shared = _source(settings, protocol, schedule, train.classes, store)
    layout = plan(
        len(train.classes),
        settings.majorities,
        settings.combinations,
        settings.repeats,
        protocol.ratio,
        settings.seed,
    )
    parts = [subset_of(train.labels, r, protocol, settings.held_out, settings.seed) for r in layout]
    tasks = ReplicaTasks(
        _resident(train, settings.target, protocol).to(device),
        _resident(test, settings.target, protocol).to(device),
        len(train.classes),
        [part[0] for part in parts],
        [part[1] for part in parts],
        [r.seed for r in layout],
        protocol.augmentation,
    )
    name = settings.source or protocol.source
    return Study(
        settings, protocol, schedule, readings, source, key, name, shared, train, test, layout, tasks
    )  # fmt: skip


def train_replicas(
    study: Study, method: DFGMethod, store: RunStore, *, rho: float | None = None, only: Sequence[int] | None = None
) -> list[Trained]:
    """Train (or load) one method on the plan, or on the positions `only` of it.

    On a CPU one training after the other; on CUDA as many at once as memory holds, stored one by one all the same.
    """
    schedule = study.schedule if rho is None else study.schedule.model_copy(update={"rho": rho})
    wanted = list(range(len(study.plan))) if only is None else list(only)
    missing = [r for r in wanted if store.finished(study.config(method, [r], schedule)) is None]
    if missing and study.tasks.device.type == "cuda":
        _train_groups(study, method, schedule, missing, store)
    trained = []
    for r in wanted:
        train = partial(train_method, method, study.source, study.tasks.select([r]), schedule, study.readings)
        result = store.run(study.config(method, [r], schedule), train)
        network = load_source(result.tensors, schedule, study.readings)
        trained.append(Trained(r, study.plan[r], result, network))
    return trained


def rho_setting(rho: float) -> Setting:
    """ρ as the published tables spell it: whole numbers without a decimal point."""
    return {"rho": int(rho) if rho == int(rho) else rho}


def note_study(experiment: Experiment, study: Study, trained: Sequence[Trained], printed: str | None = None) -> None:
    """Put data, trainings and readings into the record, and every difference from Appendix A and §4.1.

    `printed` is the data set of the printed figure, where it is not the one the target stands for in Table 2.
    """
    settings, protocol = study.settings, study.protocol
    experiment.uses_data(f"{study.train.name} train", study.train.manifest)
    experiment.uses_data(f"{study.test.name} test", study.test.manifest)
    experiment.evaluates(f"{study.test.name}/{study.test.split}", study.test.ids)
    for one in trained:
        experiment.uses_run(one.result.key)
    experiment.reads(dfg__model_choice="last", dfg__baseline_recipe="shared", dfg__cmwgan="reconstruction")
    if settings.target != (printed or protocol.printed):
        experiment.deviates(f"data set: {settings.target} stands in for {printed or protocol.printed}.")
    if study.source_name != PROTOCOLS[settings.target].source:
        experiment.deviates(f"source: {study.source_name} here, {protocol.source} in the paper.")
    paper = paper_settings(settings.target, {})
    for name, value in study.schedule:
        if value != getattr(paper, name) and name != "evaluations":
            experiment.deviates(f"{name}: {value} here, {getattr(paper, name)} in Appendix A.")
    if settings.test_images is not None:
        experiment.deviates(f"accuracy on {len(study.test)} test images, drawn class by class, not on all of them.")
    if settings.filter_weight_images and settings.reading == "paper":
        experiment.deviates(f"filter weights from {settings.filter_weight_images} images per class, not from all.")
    if settings.combinations is not None and protocol.ratio > 1:
        experiment.deviates(f"{settings.combinations} class combinations per number of majority classes, not all.")
    if settings.held_out:
        experiment.deviates(f"{settings.held_out:.0%} of the training images are held out for choosing a model.")


def _train_groups(
    study: Study, method: DFGMethod, schedule: DFGSettings, missing: Sequence[int], store: RunStore
) -> None:
    tasks = study.tasks.select(missing)
    sizes = [chunk.replicas for chunk in replica_chunks(study.source, tasks, schedule, study.readings)]
    start = 0
    for size in sizes:
        members = list(missing[start : start + size])
        start += size
        if size == 1:
            continue
        train = partial(train_method, method, study.source, study.tasks.select(members), schedule, study.readings)
        group = store.run(study.config(method, members, schedule), train)
        for slot, r in enumerate(members):
            store.run(study.config(method, [r], schedule), partial(member_of, group, slot))


def source_recipe(settings: StudySettings, protocol: Protocol, schedule: DFGSettings) -> DFGSettings:
    """How the source network is trained; the paper gives no recipe."""
    return DFGSettings(
        architecture=protocol.architecture,
        iterations=settings.source_iterations,
        batch=schedule.batch,
        network_lr=settings.source_lr,
        evaluations=1,
    )


def member_of(group: RunResult, slot: int, run: Run) -> dict[str, Tensor]:
    """One replica of a group as if it had been trained alone: its tensors, and its history logged to `run`."""
    prefix = f"{slot}/"
    for row in group.history:
        values = {f"0/{k.removeprefix(prefix)}": v for k, v in row.items() if k.startswith(prefix)}
        if values:
            run.log(int(row["step"]), **values)
    tensors = {f"0/{k.removeprefix(prefix)}": v for k, v in group.tensors.items() if k.startswith(prefix)}
    if "filter_weights" in group.tensors:
        tensors["filter_weights"] = group.tensors["filter_weights"][:, slot : slot + 1]
        tensors["filter_weights_star"] = group.tensors["filter_weights_star"][slot : slot + 1]
    return tensors


def _resident(images: ImageSet, name: DatasetName, protocol: Protocol) -> ResidentData:
    data = resident(images, grey=protocol.architecture == "lenet5")
    return ResidentData(pad(data.images, (border(name, protocol),) * 4), data.labels)


def _source(
    settings: StudySettings, protocol: Protocol, schedule: DFGSettings, classes: Sequence[str], store: RunStore
) -> tuple[SplitClassifier, str, int]:
    readings = settings.readings
    if protocol.architecture == "resnet50":
        network = resnet50_split(1000, weights="IMAGENET1K_V1").eval()
        return network, content_hash(["resnet50", "IMAGENET1K_V1"]), 0
    name = settings.source or protocol.source
    train = load_images(name, "train", settings.source_images, protocol, settings.seed)
    test = load_images(name, "test", 1000, protocol, settings.seed)
    recipe = source_recipe(settings, protocol, schedule)
    config = SourceRun(
        data=train.manifest,
        settings=recipe,
        hidden=readings.hidden,
        dropout=readings.dropout,
        seed=settings.seed,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    everything = torch.arange(len(train))
    tasks = ReplicaTasks(
        _resident(train, name, protocol).to(device),
        _resident(test, name, protocol).to(device),
        len(train.classes),
        [everything],
        [everything[:0]],
        [settings.seed],
        protocol.augmentation,
    )
    result = store.run(config, lambda run: pretrain_source(tasks, recipe, readings, run))
    network = load_source(result.tensors, recipe, readings)
    shared = align_head(network, train.classes, classes)
    return network, result.key, shared
