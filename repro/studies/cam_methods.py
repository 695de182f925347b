"""Methods of weakly supervised localisation by name: the one place where a comparator plugs in.

A method is a frozen settings object that names its training and its ingredients. To add one, write such a class and an
entry of `METHODS`; the run store, the evaluation, the tables and `repro train` then know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from repro.losses.attack import AttackSettings
from repro.losses.cam import Reduction
from repro.training.batches import TrainingSettings
from repro.training.cam import Ingredient
from repro.training.comparators.attention import (
    BackpropSettings,
    CCAMSettings,
    DANetSettings,
    NLCCAMSettings,
    SPGSettings,
)
from repro.training.comparators.erasing import ACoLSettings, ADLSettings, CutMixSettings, HaSSettings
from repro.training.comparators.settings import BorrowsTraining, ComparatorSettings, WithEGA
from repro.training.ega import EGASettings
from repro.vocabulary import CAMMethod, EGAReading


class MethodSettings(Protocol):
    """Everything that decides what a method trains; a frozen pydantic model."""

    @property
    def training(self) -> TrainingSettings:
        """Optimiser, schedule and augmentation."""

    @property
    def reduction(self) -> Reduction:
        """How the cross-entropies of several views are put together."""

    def ingredients(self) -> list[Ingredient]:
        """Add-ons of the CAM loop, in order."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The values as JSON, part of the key in the run store."""


@runtime_checkable
class ClassAware(Protocol):
    """Settings that depend on the names of the classes, such as a hierarchy of them."""

    def for_classes(self, classes: Sequence[str]) -> MethodSettings:
        """The settings for a data set with these classes."""


def for_classes(method: MethodSettings, classes: Sequence[str]) -> MethodSettings:
    """The method's settings on a data set with these classes; most are the same on all."""
    return method.for_classes(classes) if isinstance(method, ClassAware) else method


def _cam_adversarial(training: TrainingSettings) -> EGASettings:
    """The second row of Table 6: adversarial examples without the entropy term."""
    return EGASettings(entropy=None, training=training)


Build = Callable[[TrainingSettings], MethodSettings]


def _comparator(kind: type[ComparatorSettings]) -> Build:
    return lambda training: kind(training=training)


def _with_ega(kind: type[ComparatorSettings]) -> Build:
    return lambda training: WithEGA.of(kind(training=training))


COMPARATORS: dict[CAMMethod, type[ComparatorSettings]] = {
    "backprop": BackpropSettings,
    "has": HaSSettings,
    "acol": ACoLSettings,
    "spg": SPGSettings,
    "cutmix": CutMixSettings,
    "adl": ADLSettings,
    "danet": DANetSettings,
    "ccam": CCAMSettings,
    "nl_ccam": NLCCAMSettings,
}

METHODS: dict[CAMMethod, Build] = {
    "cam": EGASettings.baseline,
    "cam_adversarial": _cam_adversarial,
    "ega": EGASettings.paper,
    **{name: _comparator(kind) for name, kind in COMPARATORS.items()},
    "has_ega": _with_ega(HaSSettings),
    "cutmix_ega": _with_ega(CutMixSettings),
    "adl_ega": _with_ega(ADLSettings),
}
"""Every method by its id in the published tables; those with EGA on top exist nowhere else."""

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
"""What each reading changes in the paper's EGA; `released` is the authors' whole script (digest §0)."""


def method_settings(name: CAMMethod, training: TrainingSettings, *, batch_norm: str = "dual") -> MethodSettings:
    """Settings of a method by name.

    Args:
        name: entry of `METHODS`.
        training: of the notebook.
        batch_norm: `shared` for backbones that have no batch norm to make dual, such as SqueezeNet.

    Raises:
        ValueError: there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; expected one of {', '.join(METHODS)}")
    settings = METHODS[name](training)
    if isinstance(settings, EGASettings):
        return with_changes(settings, batch_norm=batch_norm)
    if isinstance(settings, WithEGA):
        return settings.model_copy(update={"ega": with_changes(settings.ega, batch_norm=batch_norm)})
    return settings


def trained_as(method: MethodSettings) -> MethodSettings:
    """The method whose training is used: that of another one where only the maps differ."""
    return method.trained_as if isinstance(method, BorrowsTraining) else method


def with_changes(settings: EGASettings, **changes: Any) -> EGASettings:
    """EGA settings with some fields replaced, checked again."""
    return EGASettings.model_validate(
        {**{name: getattr(settings, name) for name in EGASettings.model_fields}, **changes}
    )
