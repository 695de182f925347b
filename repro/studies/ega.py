"""What each EGA table trains, and its rows: from a notebook's parameters to numbers beside the printed cells."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor

from repro.data.images import ImageSet
from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting
from repro.losses.attack import AttackSettings
from repro.losses.cam import unit_range
from repro.report.experiment import Experiment
from repro.studies.cam_methods import READINGS, MethodSettings, method_settings, with_changes
from repro.studies.cam_study import CamStudy, StudyImages, StudySettings, study_settings
from repro.studies.localised import Localised, MetricPolicy, centre_baseline, measure
from repro.training.ega import EGASettings
from repro.training.run_store import RunConfig, RunStore
from repro.vocabulary import ThresholdName

Parameters = Mapping[str, Any]
CENTRE = "centre_gaussian"


@dataclass(frozen=True)
class Trial:
    """One cell of a table: what is trained, and which printed cell it stands for."""

    method: str
    """Method id of the published table."""
    setting: Setting
    """Its axes in the published table."""
    study: StudySettings
    settings: MethodSettings


@dataclass(frozen=True)
class Outcome:
    """One trial's evaluations, one per seed, in the order of the parameters."""

    trial: Trial
    study: CamStudy
    found: list[Localised]


@dataclass
class Measured:
    """Rows, and the values per image behind them."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    thresholds: dict[str, list[float]] = field(default_factory=dict)
    """τ per cell, over seeds and IoUs."""


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
    trials = by_network(parameters)
    if parameters["alexnet"] is not None:
        study = study_settings(parameters, network=parameters["alexnet"])
        chosen = [method for method in parameters["methods"] if method in ("cam", "has")]
        trials += [_named(method, {"network": "alexnet"}, study, parameters) for method in chosen]
    return trials


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
    """Table 6, and EGA once more under each of `readings`."""
    trials = by_network(parameters)
    for whole in [trial for trial in trials if trial.method == "ega"]:
        for reading in parameters["readings"]:
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
            settings = with_changes(_ega(study, parameters), attack=AttackSettings.advprop(epsilon))
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
) -> list[Outcome]:
    """Train and evaluate every trial with every seed; finished work is loaded, images are read once per study.

    Held-out images are localised, too, where `validation` is among `thresholds`.
    """
    validate = "validation" in thresholds
    return [
        Outcome(trial, study, [study.localise(trial.settings, seed, validate=validate) for seed in seeds])
        for trial, study in with_studies(trials, store)
    ]


def with_studies(trials: Sequence[Trial], store: RunStore) -> Iterator[tuple[Trial, CamStudy]]:
    """Every trial with its study; those on the same data share its images."""
    loaded: dict[StudyImages, StudyImages] = {}
    for trial in trials:
        images = StudyImages.of(trial.study)
        yield trial, CamStudy(trial.study, loaded.setdefault(images, images), store)


def errors(
    outcomes: Sequence[Outcome], metrics: Sequence[str], policy: MetricPolicy, **mark: str | int | float
) -> Measured:
    """One row per trial, seed and metric, in per cent; `mark` adds axes that the printed table does not have."""
    measured = Measured()
    for outcome in outcomes:
        for found in outcome.found:
            for metric in metrics:
                _add(measured, outcome.trial, found, metric, policy, outcome.trial.setting | mark)
    return measured


def baseline(outcome: Outcome, metrics: Sequence[str], policy: MetricPolicy) -> Measured:
    """The centre-Gaussian rows beside an outcome's: what a map that never saw the image scores."""
    measured = Measured()
    centre = replace(outcome.trial, method=CENTRE)
    found = centre_baseline(outcome.study.images.test)
    if policy.threshold == "validation":
        found = replace(found, held_out=centre_baseline(outcome.study.images.val))
    for metric in metrics:
        _add(measured, centre, found, metric, policy, centre.setting)
    return measured


def note_trials(experiment: Experiment, outcomes: Sequence[Outcome]) -> None:
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
    own = [outcome.trial for outcome in outcomes if outcome.trial.method == "ega"]
    if own and isinstance(settings := own[0].settings, EGASettings):
        note_readings(experiment, settings)


def note_readings(experiment: Experiment, settings: EGASettings) -> None:
    """The readings in force for EGA itself (ledger `repro/evidence/readings/ega.yaml`)."""
    assert settings.attack is not None
    experiment.reads(
        ega__attack__space=settings.attack.space,
        ega__attack__statistics=settings.attack.statistics,
        ega__batch_norm__routing=settings.batch_norm,
        ega__entropy__p_cam=str(settings.entropy),
        ega__loss__reduction=settings.reduction,
    )


def _note_study(experiment: Experiment, study: StudySettings) -> None:
    experiment.differs(dataset=study.dataset, network=study.network)
    if study.pretrain_epochs:
        experiment.deviates(
            f"{study.network} has no pretrained weights: all methods and seeds go on from one plain CAM training of "
            f"{study.pretrain_epochs} epochs on the same images, where the paper starts from ImageNet weights."
        )
    if study.class_crops == "one":
        experiment.deviates("The class is predicted from the whole image; the paper averages ten crops.")
    experiment.deviates(
        f"{study.training.epochs} epochs of {study.network} on {study.dataset}, which the paper does "
        "not state; optimiser settings are those of the readings ledger or of the parameters above."
    )


def _add(
    measured: Measured, trial: Trial, found: Localised, metric: str, policy: MetricPolicy, setting: Setting
) -> None:
    score = found.score(metric, policy)
    measured.rows.append(
        Row(
            method=trial.method,
            metric=metric,
            value=score.value,
            dataset=trial.study.dataset,
            network=trial.study.network,
            seed=found.seed,
            setting=setting,
            n=len(found.correct),
            unit="%",
        )
    )
    if score.samples is not None:
        measured.samples[sample_key(trial.method, metric, found.seed, setting)] = score.samples
    if score.thresholds:
        measured.thresholds.setdefault(f"{cell_name(trial.method, setting)}, {metric}", []).extend(score.thresholds)


def _named(method: Any, setting: Setting, study: StudySettings, parameters: Parameters) -> Trial:
    settings = method_settings(method, study.training, batch_norm=parameters["batch_norm"])
    return Trial(method, setting, study, settings)


def _ega(study: StudySettings, parameters: Parameters) -> EGASettings:
    settings = method_settings("ega", study.training, batch_norm=parameters["batch_norm"])
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


# The trainings of an EGA notebook without their evaluation: what `repro train ega` runs on one or many devices.


def train_trials(id: str, parameters: Mapping[str, Any], devices: int) -> None:
    """Train every trial of notebook `id` with every seed; finished ones are loaded.

    With several devices every process calls this, each batch is shared among them, and the first alone writes. The
    result does not depend on their number but for rounding, so the number is not part of a training's key.

    Raises:
        ValueError: `id` trains nothing, or `batch_size` cannot be shared evenly.
    """
    if devices > 1 and parameters["batch_size"] % devices:
        raise ValueError(f"batch_size {parameters['batch_size']} cannot be shared evenly by {devices} devices")
    fabric = make_fabric(devices, parameters["precision"])
    for trial, study in with_studies(trials_of(id, parameters), RunStore()):
        for seed in parameters["seeds"]:
            result = study.train(trial.settings, seed, fabric)
            fabric.barrier()
            state = "already trained" if result.reused else f"trained in {result.wall_seconds:.0f} s"
            fabric.print(f"{cell_name(trial.method, trial.setting)}, seed {seed}: {state} ({result.key})", flush=True)


def make_fabric(devices: int, precision: Any) -> Fabric:
    """A launched Fabric: GPUs where there are some, else CPU processes; DDP where there are several."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    strategy = "ddp" if devices > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
