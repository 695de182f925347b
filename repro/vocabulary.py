"""Names that notebook parameters may take; light to import, so that parameters are checked before anything heavy."""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, StringConstraints

Preset = Literal["smoke", "quick", "paper"]
"""Set of parameter values: plumbing in seconds, real but small data, or the paper's own."""

Paper = Literal["ega", "dfg", "scorecampp"]
"""Short ids of the three papers."""

DatasetName = Literal[
    "scenes",
    "scenes_two_objects",
    "digits",
    "font_digits",
    "garment_scenes",
    "mnist",
    "fashion_mnist",
    "emnist_digits",
    "svhn",
    "cifar10",
    "cifar10_jpg",
    "cinic10",
    "stl10",
    "caltech256",
    "food101",
    "dogs_vs_cats",
    "oxford_pets",
    "cub",
    "tiny_imagenet",
    "imagenet",
    "imagenet_sample",
    "ilsvrc",
    "openimages30k",
]
"""Data sets of the registry that hold images."""

ArchitectureName = (
    Literal["small_cnn", "small_vit", "squeezenet1_0", "resnet20", "resnet18", "vgg19", "vit_b_16"]
    | Annotated[str, StringConstraints(pattern=r"^(torchvision|timm):[A-Za-z0-9_.]+$")]
)
"""Classifiers to be explained; any of a library as `torchvision:NAME` or `timm:NAME`."""

Gate = Literal["tanh", "relu", "sigmoid", "sigmoid_relu", "mish", "swish"]
"""Gate activations of ScoreCAM++ (Table 5); `sigmoid_relu` is the released code's "sigmoid"."""

CAMNetworkName = Literal[
    "small_cam",
    "small_inception",
    "squeezenet",
    "alexnet_gap",
    "vgg16",
    "vgg16_benchmark",
    "googlenet",
    "inception_v3",
]
"""Networks with class activation maps; `vgg16_benchmark` and `inception_v3` are those of EGA's released code."""

ThresholdName = Literal["oracle", "fixed", "validation"]
"""How the threshold of a map is chosen: best on the evaluated images, given, or best on held-out images."""

_TRAINING = pathlib.Path(__file__).parent / "training"
_METHOD = re.compile(r'^    id: ClassVar\[str\] = "(\w+)"\n    label: ClassVar\[str\] = "(.+)"$', re.MULTILINE)


def cam_method_labels(*places: pathlib.Path) -> dict[str, str]:
    """Id and label of every localisation method whose class gives itself both, read from the source of `places`.

    So a method is named once, by its class, and naming it here does not import torch.
    """
    sources = [
        path for place in places or (_TRAINING, _TRAINING / "comparators") for path in sorted(place.glob("*.py"))
    ]
    return dict(found for path in sources for found in _METHOD.findall(path.read_text(encoding="utf-8")))


if TYPE_CHECKING:
    CAMMethod = str
else:
    CAMMethod = Literal[tuple(cam_method_labels())]
"""Methods of weakly supervised localisation that can be trained."""

EGAReading = Literal[
    "released_attack",
    "shared_batch_norm",
    "released_entropy",
    "class_softmax_entropy",
    "binary_entropy",
    "mean_reduction",
    "released",
]
"""Changes to the paper's EGA, one reading at a time; `released` is the authors' whole script."""

DFGTarget = Literal["digits", "svhn", "fashion_mnist", "stl10", "cinic10", "caltech256", "food101"]
"""Target data sets of DFG's Table 2, and the smoke preset's stand-in `digits`."""

DFGMethod = Literal[
    "original",
    "fine_tuning",
    "delta",
    "difa_cmwgan",
    "dfg",
    "whole_transfer",
    "reweighting",
    "class_balanced",
    "dfg_without_delta",
    "dfg_reweighting",
    "balanced",
]
"""Methods of DFG's Table 2, then our controls."""

# What a parameters cell may be annotated with. Papermill reads one word, with brackets, and no `|` or quotes: hence a
# name for each choice and for each "or none".

OptionalPositiveInt = PositiveInt | None
OptionalNonNegativeFloat = NonNegativeFloat | None
OptionalStr = str | None
OptionalEpochs = list[NonNegativeInt] | None
OptionalDataset = DatasetName | None
OptionalCAMNetwork = CAMNetworkName | None

Combinations = PositiveInt | list[list[NonNegativeInt]] | None
"""DFG's class combinations: how many per number of majority classes, these very ones, or all."""

Numbers = dict[str, int | float]
"""Fields of a settings object by name."""

ExplainedClass = Literal["predicted", "label"]
"""Class whose map is made (reading `scorecampp.target`)."""

ScoreSpace = Literal["probability", "logit"]
"""Scale on which faithfulness is measured."""

MaskPrecision = Literal["float32", "bfloat16"]
"""Of Score-CAM's masked passes."""

TrainingPrecision = Literal["32-true", "bf16-mixed"]
"""Of EGA's trainings, as Lightning Fabric names it."""

Readings = dict[str, str | int | float | bool]
"""Points of the ledger and the options to read them by."""

ClassCrops = Literal["ten", "one"]
"""Crops over which the class is averaged."""

OnBadImage = Literal["stop", "skip"]
"""Damaged images stop the run, or are left out and counted."""

ReadingSet = Literal["paper", "released"]
"""The text, or what the released code does."""

DFGFeatureFigure = Literal["svhn", "stl10"]
"""Panels of DFG's Fig. 2."""

DFGMapFigure = Literal["caltech256", "food101"]
"""Data sets of DFG's Figs. 3 and 4."""

PrintedNetwork = Literal["resnet18", "vgg19"]
"""Networks of ScoreCAM++'s tables."""
