"""DFG's tables as trainings of the run store: every method on every class combination, shared by all notebooks.

What is kept of a training is what tables need: its history and filter weights, and the networks of the plan's first
one (`Trained.tensors`), which the figures show. Networks are read when asked for and not held.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

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
    load_images,
    paper_settings,
    plan,
    protocol_of,
    resident_images,
    subset_of,
)
from repro.training.baselines import load_source, pretrain_source
from repro.training.device import device
from repro.training.dfg import group_size, train_method
from repro.training.dfg_settings import RECIPES, DFGReadings, DFGSettings, Recipe
from repro.training.replicas import in_groups
from repro.training.run_store import Run, RunConfig, RunResult, RunStore
from repro.training.sampling import ReplicaTasks, ResidentData
from repro.training.transfer import source_attention, source_filter_weights
from repro.vocabulary import DatasetName, DFGMethod, DFGTarget


class DFGParameters(BaseModel):
    """What a notebook's parameters say about data and repetition."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: DFGTarget
    source: DatasetName | None = None
    """Source data set in place of the paper's; None is the paper's."""
    majorities: tuple[int, ...] = (2, 8)
    """Numbers of majority classes."""
    combinations: int | tuple[tuple[int, ...], ...] | None = None
    """Class combinations per number of majority classes, None for all; or the very combinations, by class index."""
    repeats: int = 1
    """Seeds of the first combination; of everything where the set is balanced."""
    own_sources: bool = False
    """Every seed starts from a source network of its own."""
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
    def of(cls, parameters: Mapping[str, Any], target: DFGTarget | None = None) -> "DFGParameters":
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

    def source_recipe(self, schedule: DFGSettings) -> DFGSettings:
        """How the source network is trained."""
        return DFGSettings(
            architecture=schedule.architecture,
            iterations=self.source_iterations,
            batch=schedule.batch,
            network_lr=self.source_lr,
            evaluations=1,
        )


class SourceRun(RunConfig):
    """Key of a source network."""

    kind: ClassVar[str] = "dfg_source"
    data: str
    settings: DFGSettings
    hidden: tuple[int, int]
    dropout: float
    seed: int


SourcePart = Literal["attention", "filter_weights"]


class MeasuresRun(RunConfig):
    """Key of what one source network knows of one subset; the same for all methods and seeds."""

    kind: ClassVar[str] = "dfg_source_measures"
    what: SourcePart
    source: str
    train: str
    majority_images: int
    ratio: float
    majority: tuple[int, ...]
    held_out: float
    subset_seed: int
    batch: int
    readings: DFGReadings


class DFGRun(RunConfig):
    """Key of one training, or of a group trained at once (`replicas` of more than one)."""

    kind: ClassVar[str] = "dfg"
    version: int = 2  # the critic's gradient in another order of operations, networks kept for the first alone
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
    networks: bool
    """Whether the first replica's networks are kept."""


@dataclass(frozen=True, eq=False)
class Source:
    """A pre-trained source network."""

    network: SplitClassifier
    key: str
    """Of its training, or the hash of what stands for it."""


@dataclass(frozen=True, eq=False)
class Study:
    """Data, source networks and plan of one target data set."""

    settings: DFGParameters
    protocol: Protocol
    schedule: DFGSettings
    readings: DFGReadings
    sources: Mapping[int, Source]
    """By seed."""
    source_name: DatasetName
    shared_classes: int
    """Classes that source and target have in common by name."""
    train: ImageSet
    test: ImageSet
    plan: list[Replica]
    store: RunStore

    @property
    def classes(self) -> list[str]:
        """Names of the target's classes."""
        return self.train.classes

    @property
    def device(self) -> torch.device:
        """Where training happens."""
        return device()

    def subset(self, replica: Replica) -> tuple[Tensor, Tensor]:
        """Indices of a replica's training and held-out images."""
        return subset_of(self.train.labels, replica, self.protocol, self.settings.held_out, self.settings.seed)

    def resident(self, images: ImageSet) -> ResidentData:
        """Images as training takes them, on the device; made anew at each call, so that nothing holds them."""
        return resident_images(images, self.protocol).to(self.device)

    def tasks(self, replicas: Sequence[Replica]) -> ReplicaTasks:
        """What these trainings see."""
        parts = [self.subset(replica) for replica in replicas]
        return ReplicaTasks(
            self.resident(self.train),
            self.resident(self.test),
            len(self.classes),
            [part[0] for part in parts],
            [part[1] for part in parts],
            [replica.seed for replica in replicas],
            self.protocol.augmentation,
        )

    def config(self, method: DFGMethod, positions: Sequence[int], schedule: DFGSettings) -> DFGRun:
        """The run-store key of some replicas of the plan."""
        replicas = tuple(self.replica(method, position) for position in positions)
        return DFGRun(
            method=method,
            source=" ".join(dict.fromkeys(self.sources[replica.source].key for replica in replicas)),
            train=self.train.manifest,
            test=self.test.manifest,
            majority_images=self.protocol.majority_images,
            ratio=self.protocol.ratio,
            replicas=replicas,
            held_out=self.settings.held_out,
            subset_seed=self.settings.seed,
            settings=schedule,
            readings=self.readings,
            networks=0 in positions and not RECIPES[method].balanced,
        )

    def replica(self, method: DFGMethod, position: int) -> Replica:
        """One of the plan as a method takes it: the balanced bound has all classes in the majority."""
        replica = self.plan[position]
        return replace(replica, majority=(), repeat=False) if RECIPES[method].balanced else replica


@dataclass(frozen=True, eq=False)
class Trained:
    """One finished training."""

    index: int
    """Position in the study's plan; the seed of its rows, so that methods are paired by combination."""
    replica: Replica
    key: str
    reused: bool
    history: list[dict[str, float]]
    real_updates: int | None
    """Step at which a method on real data alone has taken as many steps as DFG takes on them, where that differs."""
    filter_weights: Tensor | None
    """(updates + 1, k, f): the source's W first; DFG's alone, as is the next."""
    star: Tensor | None
    """(k, f): the last W*."""
    tensors: Callable[[], dict[str, Tensor]]
    """Reads everything that is kept."""

    def network(self, study: Study) -> SplitClassifier:
        """C(E(·)) in evaluation mode; kept for the plan's first training alone."""
        return load_source(self.tensors(), study.schedule, study.readings)


def prepare_study(settings: DFGParameters, changes: Mapping[str, int | float], store: RunStore | None = None) -> Study:
    """Load source and target, pre-train the source networks, and lay out the plan.

    Args:
        settings: data and repetition.
        changes: fields of `DFGSettings` that differ from Appendix A; empty is the paper's schedule.
        store: where trainings are kept; None is the project's.

    Raises:
        ValueError: a field of `changes` is unknown, or data are missing.
    """
    store = store or RunStore()
    readings = settings.readings
    protocol, schedule = protocol_of(settings.target, readings), paper_settings(settings.target, changes)
    train = load_images(settings.target, "train", None, protocol, settings.seed)
    test = load_images(settings.target, "test", settings.test_images, protocol, settings.seed)
    layout = plan(
        len(train.classes),
        settings.majorities,
        settings.combinations,
        settings.repeats,
        protocol.ratio,
        settings.seed,
        settings.own_sources,
    )
    name = settings.source or protocol.source
    seeds = sorted({replica.source for replica in layout})
    if protocol.architecture == "resnet50":
        network = resnet50_split(1000, weights="IMAGENET1K_V1").eval()
        sources, shared = {seed: Source(network, content_hash(["resnet50", "IMAGENET1K_V1"])) for seed in seeds}, 0
    else:
        sources, shared = _sources(name, seeds, settings, protocol, schedule, train.classes, store)
    return Study(
        settings, protocol, schedule, readings, sources, name, shared, train, test, layout, store
    )  # fmt: skip


def _sources(
    name: DatasetName,
    seeds: Sequence[int],
    settings: DFGParameters,
    protocol: Protocol,
    schedule: DFGSettings,
    classes: Sequence[str],
    store: RunStore,
) -> tuple[dict[int, Source], int]:
    """Source networks by seed, and how many class names they share with the target."""
    readings, recipe = settings.readings, settings.source_recipe(schedule)
    train = load_images(name, "train", settings.source_images, protocol, settings.seed)
    found, shared = {}, 0

    def pretrain(seed: int, run: Run) -> dict[str, Tensor]:
        where = device()
        test = load_images(name, "test", 1000, protocol, settings.seed)
        every = torch.arange(len(train))
        own, unseen = (resident_images(images, protocol).to(where) for images in (train, test))
        tasks = ReplicaTasks(own, unseen, len(train.classes), [every], [every[:0]], [seed], protocol.augmentation)
        return pretrain_source(tasks, recipe, readings, run)

    for seed in seeds:
        config = SourceRun(
            data=train.manifest, settings=recipe, hidden=readings.hidden, dropout=readings.dropout, seed=seed
        )
        result = store.run(config, partial(pretrain, seed))
        network = load_source(result.tensors, recipe, readings)
        shared = align_head(network, train.classes, classes)
        found[seed] = Source(network, result.key)
    return found, shared


def train_replicas(
    study: Study, method: DFGMethod, *, rho: float | None = None, only: Sequence[int] | None = None
) -> list[Trained]:
    """Train (or load) one method on the plan, or on the positions `only` of it.

    One training after the other; on CUDA as many at once as memory holds, stored one by one all the same.
    """
    schedule = study.schedule if rho is None else study.schedule.model_copy(update={"rho": rho})
    wanted = list(range(len(study.plan))) if only is None else list(only)
    if study.device.type == "cuda":
        missing = [r for r in wanted if study.store.finished(study.config(method, [r], schedule)) is None]
        if missing:
            _train_groups(study, method, schedule, missing)
    return [_trained(study, method, schedule, position) for position in wanted]


def _trained(study: Study, method: DFGMethod, schedule: DFGSettings, position: int) -> Trained:
    config = study.config(method, [position], schedule)
    result = study.store.run(config, partial(_train, study, method, schedule, [position]))
    weights = result.tensors.get("filter_weights")
    compared = RECIPES[method].generates == "nothing" and schedule.classes_every > 1
    return Trained(
        position,
        study.plan[position],
        result.key,
        result.reused,
        result.history,
        schedule.real_updates if compared else None,
        None if weights is None else weights[:, 0],
        None if weights is None else result.tensors["filter_weights_star"][0],
        lambda: study.store.run(config, partial(_train, study, method, schedule, [position])).tensors,
    )


def _train(
    study: Study, method: DFGMethod, schedule: DFGSettings, positions: Sequence[int], run: Run
) -> dict[str, Tensor]:
    replicas = [study.replica(method, position) for position in positions]
    (source,) = {replica.source for replica in replicas}
    recipe = RECIPES[method]
    measures = [source_measures(study, recipe, replica, schedule) for replica in replicas]
    stacked = {name: torch.cat([one[name] for one in measures]) for name in measures[0]}
    network, tasks = study.sources[source].network, study.tasks(replicas)
    tensors = train_method(method, network, tasks, schedule, study.readings, run, stacked)
    keeps = study.config(method, positions, schedule).networks
    first = tuple(f"{positions.index(0)}/{part}." for part in ("extractor", "classifier", "generator")) if keeps else ()
    return {name: value for name, value in tensors.items() if "/" not in name or name.startswith(first)}


def source_measures(study: Study, recipe: Recipe, replica: Replica, schedule: DFGSettings) -> dict[str, Tensor]:
    """What the replica's source knows of its images, from the store; nothing for most recipes."""
    source = study.sources[replica.source]
    found: dict[str, Tensor] = {}
    parts: list[tuple[SourcePart, bool]] = [
        ("attention", recipe.regularised),
        ("filter_weights", recipe.generates == "features"),
    ]
    for what, needed in parts:
        if needed:
            config = MeasuresRun(
                what=what,
                source=source.key,
                train=study.train.manifest,
                majority_images=study.protocol.majority_images,
                ratio=study.protocol.ratio,
                majority=replica.majority,
                held_out=study.settings.held_out,
                subset_seed=study.settings.seed,
                batch=schedule.batch,
                readings=study.readings,
            )
            found |= study.store.run(config, partial(_measure, study, replica, schedule, what)).tensors
    return found


def _measure(study: Study, replica: Replica, schedule: DFGSettings, what: SourcePart, run: Run) -> dict[str, Tensor]:
    tasks, network = study.tasks([replica]), study.sources[replica.source].network.to(study.device)
    if what == "attention":
        return source_attention(network, tasks, schedule)
    return {"filter_weights": source_filter_weights(network, tasks, study.readings)}


def _train_groups(study: Study, method: DFGMethod, schedule: DFGSettings, missing: Sequence[int]) -> None:
    """Train several replicas at once and store them one by one; those of one source together."""

    def train(members: Sequence[int]) -> None:
        if len(members) == 1:
            return  # alone is how `_trained` does it
        group = study.store.run(
            study.config(method, members, schedule), partial(_train, study, method, schedule, members)
        )
        for slot, position in enumerate(members):
            study.store.run(study.config(method, [position], schedule), partial(member_of, group, slot))

    one = study.tasks([study.plan[missing[0]]])
    for seed, source in study.sources.items():
        members = [position for position in missing if study.replica(method, position).source == seed]
        size = group_size(source.network, one, len(members), schedule, study.readings) if members else 1
        in_groups(members, size, train)


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
        experiment.uses_run(one.key)
    experiment.reads(dfg__model_choice="last", dfg__baseline_recipe="shared", dfg__cmwgan="reconstruction")
    if settings.target != (printed or protocol.printed):
        experiment.deviates(f"data set: {settings.target} stands in for {printed or protocol.printed}.")
    if study.source_name != PROTOCOLS[settings.target].source:
        experiment.deviates(f"source: {study.source_name} here, {protocol.source} in the paper.")
    paper = paper_settings(settings.target, {})
    for name, value in study.schedule:
        if value != getattr(paper, name) and name != "evaluations":
            experiment.deviates(f"{name}: {value} here, {getattr(paper, name)} in Appendix A.")
    for sentence in _data_deviations(study):
        experiment.deviates(sentence)


def _data_deviations(study: Study) -> list[str]:
    settings, protocol, found = study.settings, study.protocol, []
    if settings.test_images is not None:
        found.append(f"accuracy on {len(study.test)} test images, drawn class by class, not on all of them.")
    if settings.filter_weight_images and settings.reading == "paper":
        found.append(f"filter weights from {settings.filter_weight_images} images per class, not from all.")
    if protocol.ratio > 1 and isinstance(settings.combinations, int):
        found.append(f"{settings.combinations} class combinations per number of majority classes, not all.")
    elif protocol.ratio > 1 and settings.combinations is not None:
        found.append(f"{len(study.plan) - settings.repeats + 1} chosen class combinations, not all.")
    if settings.held_out:
        found.append(f"{settings.held_out:.0%} of the training images are held out for choosing a model.")
    counts = study.train.labels.bincount(minlength=len(study.classes)).tolist()
    short = [f"{n} of {name}" for name, n in zip(study.classes, counts, strict=True) if n < protocol.majority_images]
    if short:
        found.append(
            f"{protocol.majority_images} images per majority class are asked for; there are {', '.join(short)}."
        )
    return found


# The trainings of a notebook by its id: what `repro train dfg` runs ahead of it.

FIRST = (0,)
MAPS_METHODS: tuple[DFGMethod, ...] = ("original", "fine_tuning", "delta", "dfg")
WEIGHTS_RHOS = (0.75, 0.0)


@dataclass(frozen=True)
class Wanted:
    """Trainings of one method: on all of a study's plan, or on some positions of it."""

    method: DFGMethod
    rho: float | None = None
    only: Sequence[int] | None = None


def wanted_of(id: str, parameters: Mapping[str, Any]) -> list[Wanted]:
    """What each notebook passes to `train_replicas`; nothing for those that train nothing."""
    found: dict[str, Callable[[], list[Wanted]]] = {
        "table2_accuracy": lambda: [Wanted(method) for method in parameters["methods"]],
        "fig2_feature_space": lambda: [Wanted("dfg", only=FIRST)],
        "fig3_fig4_activation_maps": lambda: [Wanted(method, only=FIRST) for method in MAPS_METHODS],
        "fig5_filter_weights": lambda: [Wanted("dfg", rho, FIRST) for rho in WEIGHTS_RHOS],
        "fig6_rho": lambda: [Wanted("dfg", rho, range(parameters["used"])) for rho in parameters["rhos"]],
    }
    return found.get(id.removeprefix("dfg/"), list)()


def stands_for(targets: Sequence[DFGTarget], printed: Sequence[str]) -> list[tuple[DFGTarget, str]]:
    """Each data set with the printed panel it stands for.

    Raises:
        ValueError: there are not as many of one as of the other.
    """
    if len(targets) != len(set(printed)) or len(set(printed)) < len(printed):
        raise ValueError(f"targets={list(targets)} and printed={list(printed)}: name one different panel per data set")
    return list(zip(targets, printed, strict=True))


def targets_of(parameters: Mapping[str, Any]) -> list[DFGTarget]:
    """The data sets a notebook trains on; it names one or several."""
    return parameters.get("targets") or [parameters["target"]]


def train_wanted(id: str, parameters: Mapping[str, Any], store: RunStore | None = None) -> None:
    """Train everything notebook `id` needs; finished trainings are loaded.

    Raises:
        ValueError: `id` trains nothing.
    """
    if not wanted_of(id, parameters):
        raise ValueError(f"'{id}' trains nothing")
    for target in targets_of(parameters):
        study = prepare_study(DFGParameters.of(parameters, target), parameters["schedule"], store)
        for wanted in wanted_of(id, parameters):
            only = None if wanted.only is None else [p for p in wanted.only if p < len(study.plan)]
            trained = train_replicas(study, wanted.method, rho=wanted.rho, only=only)
            new = sum(not one.reused for one in trained)
            print(f"{target}, {wanted.method}: {len(trained)} trainings, {new} of them new", flush=True)
