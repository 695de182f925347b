"""What each EGA table trains, and its rows: from a notebook's parameters to numbers beside the printed cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_fabric import Fabric

from repro.catalogue import nearest
from repro.evidence.readings import load_readings, option_name
from repro.evidence.record import Setting
from repro.losses.attack import AttackSettings
from repro.project import UserError
from repro.report.experiment import Experiment
from repro.studies.cam_study import CamStudy, LocalisationSettings, StudyImages, study_settings
from repro.studies.localised import Localised, MetricPolicy, centre_baseline
from repro.studies.rows import RowCollector
from repro.training.batches import Share
from repro.training.cam import Method
from repro.training.comparators import METHODS
from repro.training.comparators.erasing import HaSSettings
from repro.training.device import device
from repro.training.ega import AdversarialSettings, EGASettings
from repro.training.run_store import RunStore
from repro.vocabulary import EGAReading, ThresholdName

Parameters = Mapping[str, Any]
CENTRE = "centre_gaussian"

READINGS: Mapping[EGAReading, dict[str, Any]] = {
    "released_attack": {"attack": AttackSettings.released()},
    "shared_batch_norm": {"batch_norm": "shared"},
    "released_entropy": {"entropy": "released"},
    "class_softmax_entropy": {"entropy": "class_softmax"},
    "binary_entropy": {"entropy": "binary"},
    "mean_reduction": {"reduction": "mean"},
    "released": {
        name: getattr(EGASettings.released(), name) for name in ("attack", "batch_norm", "entropy", "reduction")
    },
}
"""What each reading changes in the paper's EGA; `released` is the authors' whole script (docs/papers/ega.md §0)."""


@dataclass(frozen=True)
class Trial:
    """One cell of a table: what is trained, and which printed cell it stands for."""

    method: str
    """Method id of the published table."""
    setting: Setting
    """Its axes in the published table."""
    study: LocalisationSettings
    settings: Method


@dataclass(frozen=True)
class EvaluatedTrial:
    """One trial's evaluations, one per seed, in the order of the parameters."""

    trial: Trial
    study: CamStudy
    found: list[Localised]


def by_network(parameters: Parameters) -> list[Trial]:
    """Tables 1, 2, 3 and 6, figures 4 to 6: every method on every network; `networks` maps printed to run."""
    return [
        _named(method, {"network": printed} if printed else {}, study_settings(parameters, network=network), parameters)
        for printed, network in parameters["networks"].items()
        for method in parameters["methods"]
    ]


def with_alexnet(parameters: Parameters) -> list[Trial]:
    """Table 5: every method on every network, and CAM and HaS on the network of the AlexNet column, which EGA has no
    batch norms to split for."""
    chosen = [method for method in parameters["methods"] if method in ENSEMBLES]
    alexnet = {"networks": {"alexnet": parameters["alexnet"]}, "methods": chosen} if parameters["alexnet"] else {}
    return by_network(parameters) + (by_network({**parameters, **alexnet}) if alexnet else [])


def by_dataset(parameters: Parameters) -> list[Trial]:
    """Table 4: every method on every data set; `datasets` maps printed to run.

    The printed table has one network; a second one is an axis of ours.
    """
    columns: list[tuple[str, Setting]] = [(parameters["network"], {})]
    if (second := parameters["second_network"]) is not None:
        columns.append((second, {"network": second}))
    return [
        _named(
            method,
            {"dataset": printed} | axis,
            study_settings(parameters, dataset=dataset, network=network),
            parameters,
        )
        for network, axis in columns
        for printed, dataset in parameters["datasets"].items()
        for method in parameters["methods"]
    ]


def by_component(parameters: Parameters) -> list[Trial]:
    """Table 6, and EGA once more under each of `compared_readings`."""
    trials = by_network(parameters)
    for whole in [trial for trial in trials if trial.method == "ega"]:
        for reading in parameters["compared_readings"]:
            assert isinstance(whole.settings, EGASettings)
            changed = with_changes(whole.settings, **READINGS[reading])
            trials.append(Trial("ega", whole.setting | {"reading": reading}, whole.study, changed))
    return trials


def by_entropy_weight(parameters: Parameters) -> list[Trial]:
    """Table 7: EGA by its two λ, and once without the term, which is the row of Table 6 that decides its claim."""
    study = study_settings(parameters)
    without = _named("cam_adversarial", {}, study, parameters)
    trials = []
    for clean, adversarial in parameters["weights_of_entropy"]:
        whole = _ega(study, parameters)
        changes = {"clean_entropy_weight": clean, "adversarial_entropy_weight": adversarial}
        setting: Setting = {"lambda_clean": _plain(clean), "lambda_adversarial": _plain(adversarial)}
        trials.append(Trial("ega", setting, study, with_changes(whole, **changes)))
    return [*trials, without]


def by_strength(parameters: Parameters) -> list[Trial]:
    """Fig. 7: EGA by ε, with n = ε + 1 steps but n = 1 at ε = 1 (§4.3)."""
    trials = []
    for printed, network in parameters["networks"].items():
        study = study_settings(parameters, network=network)
        for epsilon in parameters["epsilons"]:
            whole, series = _ega(study, parameters), AttackSettings.advprop(epsilon)
            attack = replace(whole.attack, epsilon=series.epsilon, steps=series.steps)
            settings = with_changes(whole, attack=attack)
            trials.append(Trial("ega", {"network": printed, "epsilon": epsilon}, study, settings))
    return trials


TRIALS: dict[str, Callable[[Parameters], list[Trial]]] = {
    "ega/table1_cub": by_network,
    "ega/table2_ilsvrc": by_network,
    "ega/table3_openimages": by_network,
    "ega/table4_maxboxaccv2": by_dataset,
    "ega/table5_corloc": with_alexnet,
    "ega/table6_components": by_component,
    "ega/table7_entropy_weights": by_entropy_weight,
    "ega/fig4_batch_statistics": by_network,
    "ega/fig5_fig6_localization": by_network,
    "ega/fig7_attack_strength": by_strength,
}


def trials_of(id: str, parameters: Parameters) -> list[Trial]:
    """What notebook `id` trains under `parameters`; the notebook and `repro train` ask the same question here.

    Raises:
        ValueError: not a notebook of this paper.
    """
    if id not in TRIALS:
        raise ValueError(f"'{id}' trains no CAM network; expected one of {', '.join(TRIALS)}")
    return TRIALS[id](parameters)


def localise_all(
    trials: Sequence[Trial], seeds: Sequence[int], store: RunStore, thresholds: Collection[ThresholdName] = ()
) -> list[EvaluatedTrial]:
    """Train and evaluate every trial with every seed; finished work is loaded, images are read once per study.

    Held-out images are localised, too, where `validation` is among `thresholds`.
    """
    validate = "validation" in thresholds
    return [
        EvaluatedTrial(trial, study, [study.localise(trial.settings, seed, validate=validate) for seed in seeds])
        for trial, study in with_studies(trials, store)
    ]


def with_studies(trials: Sequence[Trial], store: RunStore) -> Iterator[tuple[Trial, CamStudy]]:
    """Every trial with its study; those on the same data share its images."""
    loaded: dict[StudyImages, StudyImages] = {}
    for trial in trials:
        images = StudyImages.of(trial.study)
        yield trial, CamStudy(trial.study, loaded.setdefault(images, images), store)


def errors(
    outcomes: Sequence[EvaluatedTrial], metrics: Sequence[str], policy: MetricPolicy, **mark: str | int | float
) -> RowCollector:
    """One row per trial, seed and metric, in per cent; `mark` adds axes that the printed table does not have."""
    rows = RowCollector()
    for outcome in outcomes:
        for found in outcome.found:
            for metric in metrics:
                score = found.score(metric, policy)
                add_row(rows, outcome.trial, found, metric, score.value, score.samples, outcome.trial.setting | mark)
    return rows


def add_row(
    rows: RowCollector,
    trial: Trial,
    found: Localised,
    metric: str,
    value: float,
    samples: list[float] | None,
    setting: Setting,
) -> None:
    """One number in per cent of one evaluation."""
    rows.add(
        trial.method,
        metric,
        value,
        dataset=trial.study.dataset,
        network=trial.study.network,
        seed=found.seed,
        setting=setting,
        samples=samples,
        n=len(found.correct),
        unit="%",
    )


def baseline(outcome: EvaluatedTrial, metrics: Sequence[str], policy: MetricPolicy) -> RowCollector:
    """The centre-Gaussian rows beside an outcome's: what a map that never saw the image scores."""
    found = centre_baseline(outcome.study.images.test)
    if policy.threshold == "validation":
        found = replace(found, held_out=centre_baseline(outcome.study.images.val))
    centre = EvaluatedTrial(replace(outcome.trial, method=CENTRE), outcome.study, [found])
    return errors([centre], metrics, policy)


def note_trials(experiment: Experiment, outcomes: Sequence[EvaluatedTrial]) -> None:
    """Put data, trainings, readings and every difference from the printed table's setting into the record."""
    for outcome in outcomes:
        for found in outcome.found:
            experiment.uses_run(found.training_key)
    studies = {outcome.trial.study: outcome.study for outcome in outcomes}
    validated = any(found.held_out for outcome in outcomes for found in outcome.found)
    for study in studies.values():
        for images in (study.images.train, study.images.test, *([study.images.val] if validated else [])):
            experiment.uses_data(f"{images.name}/{images.split}", images.manifest, skipped=len(images.skipped))
        experiment.evaluates(f"{study.images.test.name}/{study.images.test.split}", study.images.test.ids)
        _note_study(experiment, study.settings)
    for method in {type(outcome.trial.settings): outcome.trial.settings for outcome in outcomes}.values():
        note_readings(experiment, method)


def note_readings(experiment: Experiment, settings: Method) -> None:
    """The readings in force for a method (ledger `repro/evidence/readings/ega*.yaml`).

    Where a comparator does not do what its authors' code does, the record says so.
    """
    if type(settings) is EGASettings:
        experiment.reads(
            ega__attack__space=settings.attack.space,
            ega__attack__statistics=settings.attack.statistics,
            ega__attack__step=option_name(settings.attack.step),
            ega__attack__precision=settings.attack.precision,
            ega__batch_norm__routing=settings.batch_norm,
            ega__entropy__p_cam=option_name(settings.entropy),
            ega__entropy__clean_weight=option_name(settings.clean_entropy_weight),
            ega__entropy__adversarial_weight=option_name(settings.adversarial_entropy_weight),
            ega__loss__reduction=settings.reduction,
        )
        if settings.training.precision != "32-true" and settings.attack.precision == "training":
            experiment.deviates("The attack runs in bfloat16, whose rounding is a fifth of ε.")
    experiment.reads(**{id.replace(".", "__"): option for id, option in settings.readings.items()})
    for reading in load_readings():
        chosen = settings.readings.get(reading.id)
        whose, theirs = ("code", reading.released) if reading.released is not None else ("paper", reading.paper)
        if chosen is not None and option_name(theirs) != chosen:
            options = {option_name(option): text for option, text in reading.options.items()}
            experiment.deviates(
                f"{settings.label}: {options[chosen]}; its authors' {whose}: {options[option_name(theirs)]}."
            )


def _note_study(experiment: Experiment, study: LocalisationSettings) -> None:
    experiment.differs(dataset=study.dataset, network=study.network)
    if study.pretrain_epochs:
        experiment.deviates(
            f"{study.network} has no pretrained weights: all methods and seeds go on from one plain CAM training of "
            f"{study.pretrain_epochs} epochs on the same images, where the paper starts from ImageNet weights."
        )
    if study.class_crops == "one" and study.dataset != "openimages30k":
        experiment.deviates("The class is predicted from the whole image; the paper averages ten crops.")
    if study.class_crops == "ten" and study.dataset not in ("cub", "ilsvrc"):
        experiment.deviates("The class is predicted from ten crops, which the paper states for CUB and ILSVRC only.")
    experiment.deviates(
        f"{study.training.epochs} epochs of {study.network} on {study.dataset}, which the paper does "
        "not state; optimiser settings are those of the readings ledger or of the parameters above."
    )


def _named(method: Any, setting: Setting, study: LocalisationSettings, parameters: Parameters) -> Trial:
    return Trial(method, setting, study, method_settings(method, study, parameters))


def method_settings(method: str, study: LocalisationSettings, parameters: Parameters) -> Method:
    """Settings of a method by name, under the parameters that it knows.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; expected one of {', '.join(METHODS)}")
    settings = METHODS[method](training=study.training)
    if isinstance(settings, AdversarialSettings):
        return with_readings(settings, parameters.get("readings", {}))
    return settings


def with_readings(settings: AdversarialSettings, readings: Mapping[str, Any]) -> AdversarialSettings:
    """The settings with points of the ledger read otherwise: `{"ega.attack.step": 0.01}`.

    Raises:
        UserError: an id is not in the ledger or not one of the attack, the batch norms, the entropy or the loss; an
            option is none of the ledger's.
    """
    ledger = {reading.id: reading for reading in load_readings() if reading.parameter is not None}
    fields = {id: str(reading.parameter).rsplit(".", 2)[-2:] for id, reading in ledger.items()}
    fields = {id: place for id, place in fields.items() if place[0] in ("AttackSettings", "EGASettings")}
    for id, option in readings.items():
        if id not in fields:
            raise UserError(f"readings: unknown '{id}'; {nearest(id, list(fields))}")
        if option_name(option) not in ledger[id].option_names():
            allowed = ", ".join(sorted(ledger[id].option_names()))
            raise UserError(f"readings: {id} is {option!r}; expected one of {allowed}")
        owner, name = fields[id]
        value: Any = None if option == "none" else option
        if owner == "AttackSettings":
            settings = with_changes(settings, attack={**asdict(settings.attack), name: value})
        elif name in type(settings).model_fields:
            settings = with_changes(settings, **{name: value})
    return settings


def with_changes(settings: AdversarialSettings, **changes: Any) -> AdversarialSettings:
    """Settings with some fields replaced, checked again."""
    kept = {name: getattr(settings, name) for name in type(settings).model_fields}
    return type(settings).model_validate({**kept, **changes})


def _ega(study: LocalisationSettings, parameters: Parameters) -> AdversarialSettings:
    settings = method_settings("ega", study, parameters)
    assert isinstance(settings, EGASettings)
    return settings


def _plain(number: float) -> int | float:
    """A whole number without its point, as the published settings write it."""
    return int(number) if float(number).is_integer() else number


def cell_name(method: str, setting: Setting) -> str:
    """A cell in words: the method and the axes that vary."""
    return ", ".join([method, *(f"{name} = {value}" for name, value in setting.items())])


# Map ensembles: several networks of one method, their scaled maps averaged (Table 5's GAP- and HaS-ensemble).

ENSEMBLES = {"cam": "cam_ensemble", "has": "has_ensemble"}
"""Method id, and that of its ensemble in Table 5."""
_STRIDE = 100


def ensemble_seeds(seed: int, size: int) -> list[int]:
    """Seeds of the members: the first is that of the single network, and no two ensembles below 100 share one."""
    return [seed + _STRIDE * member for member in range(size)]


def ensemble_members(method: Method, seed: int, size: int) -> list[tuple[Method, int]]:
    """Trainings of an ensemble: of CAM several seeds; of HaS one for each size of its patches, as its authors have it.

    Raises:
        ValueError: HaS has fewer sizes than members are asked for.
    """
    if not isinstance(method, HaSSettings):
        return [(method, member) for member in ensemble_seeds(seed, size)]
    sizes = [patch for patch in method.sizes if patch > 0]
    if size > len(sizes):
        raise ValueError(f"ensemble is {size}, but HaS has the patch sizes {sizes}; give at most {len(sizes)}")
    return [(method.model_copy(update={"sizes": (patch,)}), seed) for patch in sizes[:size]]


def has_ensemble(trial: Trial, size: int) -> bool:
    """Whether Table 5 prints an ensemble of this trial: CAM and HaS, in the AlexNet column."""
    return bool(size) and trial.method in ENSEMBLES and trial.setting.get("network") == "alexnet"


def ensembles_of(outcomes: Sequence[EvaluatedTrial], size: int) -> list[EvaluatedTrial]:
    """The printed ensembles of `size` networks, one per seed; none for size 0.

    Held-out images are localised where those of the single networks are.
    """
    found = []
    for outcome in outcomes:
        trial, study = outcome.trial, outcome.study
        if has_ensemble(trial, size):
            members = [ensemble_members(trial.settings, one.seed, size) for one in outcome.found]
            validate = any(one.held_out is not None for one in outcome.found)
            evaluated = [
                study.localise_ensemble(own, one.seed, validate=validate)
                for own, one in zip(members, outcome.found, strict=True)
            ]
            found.append(EvaluatedTrial(replace(trial, method=ENSEMBLES[trial.method]), study, evaluated))
    return found


# The trainings of an EGA notebook without their evaluation: what `repro train ega` runs on one or many devices.


def train_trials(id: str, parameters: Mapping[str, Any], devices: int) -> None:
    """Train every trial of notebook `id` with every seed; finished ones are loaded.

    With several devices every process calls this, each batch is shared among them, and the first alone writes. The
    result does not depend on their number but for rounding, so the number is not part of a training's key.

    Raises:
        ValueError: `id` trains nothing, or there are more devices than images in a batch.
    """
    trials = trials_of(id, parameters)
    Share(parameters["batch_size"], 0, devices)
    fabric = make_fabric(devices, parameters["precision"])
    size = parameters.get("ensemble", 0)
    for trial, study in with_studies(trials, RunStore()):
        wanted = [(trial.settings, seed) for seed in parameters["seeds"]]
        if has_ensemble(trial, size):
            wanted += [one for seed in parameters["seeds"] for one in ensemble_members(trial.settings, seed, size)]
        for settings, seed in dict.fromkeys(wanted):
            result = study.train(settings, seed, fabric)
            fabric.barrier()
            state = "already trained" if result.reused else f"trained in {result.wall_seconds:.0f} s"
            fabric.print(f"{cell_name(trial.method, trial.setting)}, seed {seed}: {state} ({result.key})", flush=True)


def make_fabric(devices: int, precision: Any) -> Fabric:
    """A launched Fabric: GPUs where there are some, else CPU processes; DDP where there are several."""
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator=device().type, devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
