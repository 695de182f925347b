"""`repro plan`: what tables will cost, from their own study functions run with a store that does a few steps.

Every training and evaluation is found by the functions that notebooks call, so that planned work cannot drift from run
work. Where images are photographs, a study is run smaller (see `Size`): once with every size small, and once more for
each size with that one larger. Costs are taken to be linear in each.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from repro.catalogue import Preset, Table
from repro.data.images import ImageSet
from repro.data.load import load_dataset
from repro.data.registry import ENTRIES
from repro.evidence.provenance import peak_memory
from repro.evidence.record import Plan, Prediction
from repro.execution import device_name
from repro.metrics.faithfulness import FaithfulnessSettings
from repro.models.classifiers import ARCHITECTURES, Classifier, load_classifier
from repro.models.split_classifier import SplitClassifier, resnet50_split
from repro.parameters import parameters_hash, preset_values
from repro.sampling_store import Cost, Sample, SamplingStore, clock
from repro.studies.dfg import DFGRun, targets_of, train_wanted, wanted_of
from repro.studies.dfg_protocol import PROTOCOLS, paper_settings
from repro.studies.ega import ensembles_of, localise_all, trials_of
from repro.studies.explanations import AREA_MATCHED, PAPER_METHODS, SubjectSettings, explain, make_maps, prepare_subject
from repro.studies.scorecampp import gate_columns, objects_subject
from repro.training.run_store import RunConfig, RunStore

MARGIN, ANALYSIS_SECONDS = 0.3, 10.0
MODEL = (
    "Interval: 95 % t interval of the mean step time of every kind of step, times the number of such steps, all "
    "errors taken as falling the same way; then a further 30 % to either side for what a few small steps on synthetic "
    "images do not show (reading files, clock speed), and 10 s at the upper end for statistics and "
    "figures. Those 30 % and 10 s are judgements, not measurements."
)
PHOTOGRAPH = 128
"""Pixels from which on images, batches and crops are made smaller."""
Values = dict[str, Any]


@dataclass
class StandIns:
    """What a study sees in place of files: images of the right shape, stored once and repeated; random weights."""

    evaluated: int | None
    """Images that the whole run takes of a split other than `train`; None is all."""
    batch: tuple[int, int] = (1, 1)
    """Images a step, in the whole run and in this one; training sets shrink alike, so that steps keep their number."""
    channels: int | None = None
    """Channels of the explained layer that are not constant, and so cost masked passes; None is all."""
    layer_channels: int = 0
    """All channels of that layer."""
    wholes: dict[str, int] = field(default_factory=dict)
    """Images in the whole run, by manifest."""
    rendering: dict[str, Cost] = field(default_factory=dict)
    """Of embedded images, which every notebook makes anew."""
    cached: dict[str, int] = field(default_factory=dict)
    """Bytes of decoded images on disk."""
    notes: list[str] = field(default_factory=list)

    def images(
        self, name: str, split: str = "test", limit: int | None = None, size: int | None = None, **_: Any
    ) -> ImageSet:
        """In place of `load_dataset`."""
        entry = ENTRIES[name]
        if split not in entry.splits:
            raise ValueError(f"the registry knows no size of split '{split}' of {name}")
        limits = {"here": limit, "whole": limit if split == "train" else self.evaluated}
        counts = {key: min(value or math.inf, entry.splits[split]) for key, value in limits.items()}
        here, whole = int(counts["here"]), int(counts["whole"])
        if split == "train" and self.batch[0] > self.batch[1]:
            here = whole // self.batch[0] * self.batch[1]
        manifest = f"{name}/{split} {whole if split == 'train' else here} {size}"
        self.wholes[manifest] = whole
        if entry.embedded:
            started = clock()
            some = min(whole, 16)
            load_dataset(name, split=split, limit=some, size=size)
            self.rendering[manifest] = Cost(clock() - started).times(whole / some)
        else:
            self.cached[f"{name}/{split} {whole} {size}"] = entry.cache_bytes(split, whole, size)
            self.notes.append(f"{name}/{split}: {whole:,} images as published, not read")
        return stand_in(manifest, split, here, size or entry.size, entry.classes, masks=entry.masks or name == "scenes")

    def classifier(self, architecture: Any, **arguments: Any) -> Classifier:
        """In place of `load_classifier`: channels beyond `channels` are constant, so that the engine skips them."""
        if arguments.get("weights") is not None:
            self.notes.append(f"random weights in place of '{arguments['weights']}'")
        found = load_classifier(architecture, **arguments | {"weights": None})

        def silence(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            axis = 1 if output.ndim == 4 else 2  # tokens have their channels last
            self.layer_channels = output.shape[axis]
            keep = torch.arange(output.shape[axis], device=output.device) < (self.channels or output.shape[axis])
            return output * keep.view([-1, 1, 1] if axis == 1 else [-1])

        found.target_layer.register_forward_hook(silence)
        return found

    def resnet50(self, classes: int, weights: str | None = None) -> SplitClassifier:
        """In place of `resnet50_split`."""
        self.notes.append(f"random weights in place of ResNet-50's {weights}")
        return resnet50_split(classes)


def stand_in(manifest: str, split: str, count: int, side: int, classes: int, *, masks: bool) -> ImageSet:
    """Images of noise, one stored and repeated, each with a box in the middle, and a mask unless it is trained on."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8)
    middle = slice(side // 4, 3 * side // 4)
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    mask[:, middle, middle] = True
    found = ImageSet(
        name="stand_in",
        split=split,
        images=noise.expand(count, -1, -1, -1),
        labels=torch.arange(count) % classes,
        classes=[f"class {index}" for index in range(classes)],
        ids=[str(index) for index in range(count)],
        boxes=[torch.tensor([[middle.start, middle.start, middle.stop, middle.stop]])] * count,
        masks=mask.expand(count, -1, -1) if masks and split != "train" else None,
    )
    found.__dict__["manifest"] = manifest  # not the hash of a million images
    return found


@contextmanager
def _substituted(replaced: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Every loaded module of this package that imported one of these functions uses the other one meanwhile."""
    modules = [module for name, module in sys.modules.items() if name.startswith("repro.") and name != __name__]
    functions = [(module, name, value) for module in modules for name, value in vars(module).items() if callable(value)]
    held = [(module, name, old) for module, name, old in functions if any(old is one for one in replaced)]
    for module, name, old in held:
        setattr(module, name, replaced[old])
    try:
        yield
    finally:
        for module, name, old in held:
            setattr(module, name, old)


@dataclass(frozen=True)
class Size:
    """A number that is made smaller: `small` in all runs of a study but one, `larger` in that one."""

    small: int
    larger: int
    whole: Callable[[RunConfig, StandIns], float]
    """What it is in the real run."""


@dataclass(frozen=True)
class Study:
    """One table, or one data set of it."""

    values: Values
    run: Callable[[Values, RunStore], object]
    stand_ins: Callable[[Mapping[str, int]], StandIns]
    """Made from the sizes of the moment."""
    sizes: Mapping[str, Size] = field(default_factory=dict)
    """By parameter (a dot leads into a mapping), or `channels`."""
    factor: Callable[[RunConfig, StandIns], float] = lambda config, stand_ins: 1.0
    """On what is taken as proportional: area, explained images."""


def ega_studies(id: str, values: Values) -> list[Study]:
    """Trainings, evaluations and ensembles of an EGA notebook."""
    thresholds = {values.get("threshold", "oracle"), *values.get("other_thresholds", ())}

    def run(values: Values, store: RunStore) -> None:
        outcomes = localise_all(trials_of(id, values), values["seeds"], store, thresholds)
        ensembles_of(outcomes, values.get("ensemble", 0))

    batch, evaluated, own = values["batch_size"], values["test_images"], values | {"weights": None}
    if (values["crop"] or 0) < PHOTOGRAPH:
        return [Study(own, run, lambda small: StandIns(evaluated))]
    halved = {name: values[name] // 2 for name in ("image_size", "resize", "crop") if values[name]}
    sizes = {
        "batch_size": Size(2, 4, lambda config, stand_ins: batch),
        "test_images": Size(2, 6, lambda config, stand_ins: stand_ins.wholes[config.model_dump()["data"]]),
    }
    smaller = lambda small: StandIns(evaluated, (batch, small["batch_size"]))  # noqa: E731
    return [Study(own | halved, run, smaller, sizes, lambda config, stand_ins: 4.0)]


def dfg_studies(id: str, values: Values) -> list[Study]:
    """Source networks and all trainings of a DFG notebook, one study per data set."""
    return [_dfg_study(id, values, target) for target in targets_of(values)] if wanted_of(id, values) else []


def _dfg_study(id: str, values: Values, target: Any) -> Study:
    one = values | ({"targets": [target]} if "targets" in values else {})
    batch, classes = paper_settings(target, values["schedule"]).batch, ENTRIES[target].classes

    def images_per_class(config: RunConfig, stand_ins: StandIns) -> float:
        """Behind the filter weights, on average."""
        if not isinstance(config, DFGRun):
            return 1
        frequent = len(config.replicas[0].majority) or classes
        mean = config.majority_images * (frequent + (classes - frequent) / config.ratio) / classes
        return min(mean, config.readings.filter_weight_images or mean)

    def test_images(config: RunConfig, stand_ins: StandIns) -> float:
        return stand_ins.wholes[config.test] if isinstance(config, DFGRun) else 20

    sizes: dict[str, Size] = {}
    if values["filter_weight_images"] is None:
        sizes["filter_weight_images"] = Size(1, 3, images_per_class)
    if PROTOCOLS[target].architecture != "lenet5":
        sizes |= {"schedule.batch": Size(4, 8, lambda *_: batch), "test_images": Size(20, 60, test_images)}
    return Study(one, lambda v, store: train_wanted(id, v, store), lambda _: StandIns(values["test_images"]), sizes)


class MapsRun(RunConfig):
    """The maps of a figure, which are drawn and not stored."""

    kind: ClassVar[str] = "maps"
    figure: str
    methods: tuple[str, ...]
    copies: int
    data: str


FIGURES: Mapping[str, tuple[str, ...]] = {
    "scorecampp/fig2_fig4_qualitative": PAPER_METHODS,
    "scorecampp/fig5_activation_maps": tuple(
        column.explained for column in gate_columns(["relu", "sigmoid", "sigmoid_relu", "swish", "mish", "tanh"])
    ),
    "scorecampp/fig6_multiple_objects": ("scorecam", "scorecampp", AREA_MATCHED),
}
"""Notebooks that make maps without scoring them, and the methods."""


def scorecampp_studies(id: str, values: Values) -> list[Study]:
    """(Fine-)training and explanations of a ScoreCAM++ notebook; of photographs one is explained, at half its sides."""

    def run(values: Values, store: RunStore) -> None:
        settings, several = SubjectSettings.of(values), values.get("several")
        subject = objects_subject(settings, several, store) if several else prepare_subject(settings, store)
        options = {name: values[name] for name in ("augmented_copies", "precision")}
        if id in FIGURES:
            config = MapsRun(
                figure=id, methods=FIGURES[id], copies=options["augmented_copies"], data=subject.images.manifest
            )
            store.run(config, lambda run: make_maps(subject, slice(0, len(subject.images)), FIGURES[id], **options))
        else:
            gates = gate_columns(values["gates"]) if "gates" in values else []
            methods = [column.explained for column in gates] or ["scorecampp"]
            explain(
                subject, methods, FaithfulnessSettings(), store, insertion_steps=values["insertion_steps"], **options
            )

    architecture, images = ARCHITECTURES[values["architecture"]], values["images"]
    side = values["input_size"] or architecture.input_size
    if side < PHOTOGRAPH:
        return [Study(values | {"weights": None}, run, lambda small: StandIns(images))]
    area = 1.0 if architecture.fixed_size else 4.0
    own = values | {"weights": None, "images": 1, "input_size": None if area == 1 else side // 2}
    sizes = {"channels": Size(4, 12, lambda config, stand_ins: stand_ins.layer_channels)}
    for name in ("insertion_steps", "augmented_copies"):
        if (whole := values.get(name, 0)) > 4:
            sizes[name] = Size(1, 3, lambda config, stand_ins, whole=whole: whole)  # type: ignore[misc]

    def factor(config: RunConfig, stand_ins: StandIns) -> float:
        return area * (stand_ins.wholes[config.model_dump()["data"]] if config.kind in ("explanations", "maps") else 1)

    return [Study(own, run, lambda small: StandIns(images, channels=small["channels"]), sizes, factor)]


STUDIES = {"ega": ega_studies, "dfg": dfg_studies, "scorecampp": scorecampp_studies}


class Planner:
    """Plans tables one after the other; work that an earlier table does is not counted again.

    Args:
        repeats: timed steps of the commonest kind of every loop; two at least, for an interval.
        clock: seconds; replaced in tests.

    Raises:
        ValueError: fewer than two repeats.
    """

    def __init__(self, repeats: int = 2, clock: Callable[[], float] = clock) -> None:
        if repeats < 2:
            raise ValueError(f"repeats={repeats}: an interval needs at least 2 timed steps")
        self._repeats, self._clock = repeats, clock
        self._alike: dict[str, Sample] = {}
        self._done: set[str] = set()

    def predict(self, table: Table, values: Values) -> Prediction:
        """Cost of one table under these parameters.

        Raises:
            Whatever its study raises, e.g. where it does not fit into memory.
        """
        cost, checkpoint, shared = Cost(), 0, 0
        notes: list[str] = []
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        for study in STUDIES[table.paper](table.id, values):
            small = {name: size.small for name, size in study.sizes.items()}
            base, seen = self.sampled(study, small)
            raised = {name: self.sampled(study, small | {name: size.larger})[0] for name, size in study.sizes.items()}
            for place, sample in enumerate(base.runs.values()):
                others = {name: list(store.runs.values())[place] for name, store in raised.items()}
                identity, whole = _extrapolated(study, seen, sample, others)
                shared += identity in self._done
                cost += Cost() if identity in self._done else whole
                self._done.add(identity)
                checkpoint = max([checkpoint, *(loop.checkpoint_bytes for loop in sample.loops)])
            cost = sum(seen.rendering.values(), cost)
            cost += Cost(stored=sum(size for name, size in seen.cached.items() if name not in self._done))
            self._done |= set(seen.cached)
            notes += seen.notes
        if shared:
            notes.append(f"{shared} of its trainings or evaluations are done by tables before it")
        return Prediction(
            parameters_hash=parameters_hash(values),
            device=device_name(),
            seconds=cost.seconds,
            low=max(0.0, cost.seconds - cost.half_width) / (1 + MARGIN),
            high=(cost.seconds + cost.half_width) * (1 + MARGIN) + ANALYSIS_SECONDS,
            gpu_hours=cost.seconds / 3600 if on_gpu else None,
            device_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
            host_memory_bytes=peak_memory(),
            disk_bytes=round(cost.stored) + 2 * checkpoint,
            notes=tuple(dict.fromkeys(notes)),
        )

    def sampled(self, study: Study, sizes: Mapping[str, int]) -> tuple[SamplingStore, StandIns]:
        """Run a study with these sizes: what it asked the store for, and what it saw."""
        values, seen = dict(study.values), study.stand_ins(sizes)
        for name, number in sizes.items():
            outer, _, inner = name.partition(".")
            values[outer] = {**values[outer], inner: number} if inner else number
        store = SamplingStore(Path(), repeats=self._repeats, clock=self._clock, alike=self._alike)
        fakes: dict[Any, Callable[..., Any]] = {load_dataset: seen.images}
        fakes[load_classifier], fakes[resnet50_split] = seen.classifier, seen.resnet50
        with _substituted(fakes), redirect_stdout(io.StringIO()):
            study.run(values, store)
        return store, seen


def _extrapolated(study: Study, seen: StandIns, small: Sample, larger: Mapping[str, Sample]) -> tuple[str, Cost]:
    """What one run is, and its whole cost, from its cost with every size small and with each one larger."""
    factor, cost = study.factor(small.config, seen), small.cost
    identity: list[object] = [small.config.key, factor]
    for name, other in larger.items():
        if other.result is small.result:
            continue  # a size that is none of this run
        size = study.sizes[name]
        whole = size.whole(small.config, seen)
        identity.append((name, whole))
        slope = other.cost + small.cost.times(-1)
        share = max(0.0, whole - size.small) / (size.larger - size.small)
        cost += Cost(max(0.0, slope.seconds), slope.half_width, slope.stored).times(share)
    return str(identity), cost.times(factor)


def make_plan(
    tables: Sequence[Table],
    preset: Preset,
    overrides: Mapping[str, Any],
    repeats: int,
    started: Callable[[Table], None] = lambda table: None,
) -> Plan:
    """Predict every table in order; one that cannot be sampled gets a reason and does not stop the others.

    Raises:
        UserError: the parameters of a table are not valid.
        ValueError: fewer than two repeats.
    """
    planner, plan = Planner(repeats), Plan(preset=preset)
    for table, values in [(table, preset_values(table, preset, overrides)) for table in tables]:
        started(table)
        try:
            plan.tables[table.id] = planner.predict(table, values)
        except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, ValueError) as error:
            plan.refused[table.id] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return plan
