"""Tables A.3 to A.8 and the hyper-parameters of Appendix A, generated from the code beside what is printed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.evidence.record import Row
from repro.models import split_classifier
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureDiscriminator, FeatureGenerator
from repro.models.split_classifier import Architecture
from repro.studies.dfg_protocol import PROTOCOLS
from repro.training.dfg_settings import PAPER_SETTINGS

Printed = Sequence[tuple[str, str, str]]
"""Rows of a printed table: layer, printed dimension, name of the module whose output it is ('' for an input)."""

CLASSIFIERS: dict[str, tuple[Architecture, int, Printed]] = {
    "Table A.3": (
        "lenet5",
        10,
        [
            ("Conv 5 × 5", "28 × 28 × 6", "extractor.layers.conv1"),
            ("Max Pooling 2 × 2", "14 × 14 × 6", "extractor.layers.pool1"),
            ("Conv 5 × 5", "10 × 10 × 16", "classifier.body.conv2"),
            ("Max Pooling 2 × 2", "5 × 5 × 16", "classifier.body.pool2"),
            ("Fully Connected", "120", "classifier.body.fc1"),
            ("Fully Connected", "84", "classifier.body.fc2"),
            ("Fully Connected", "10", "classifier.head"),
        ],
    ),
    "Table A.5": (
        "vgg16_32",
        10,
        [
            ("2×Conv 3 × 3", "32 × 32 × 64", "extractor.layers.conv1_2"),
            ("Max Pooling 2 × 2, st = 2", "16 × 16 × 64", "extractor.layers.pool1"),
            ("2×Conv 3 × 3", "16 × 16 × 128", "classifier.body.conv2_2"),
            ("Max Pooling 2 × 2, st = 2", "8 × 8 × 128", "classifier.body.pool2"),
            ("3×Conv 3 × 3", "8 × 8 × 256", "classifier.body.conv3_3"),
            ("Max Pooling 2 × 2, st = 2", "4 × 4 × 256", "classifier.body.pool3"),
            ("3×Conv 3 × 3", "4 × 4 × 512", "classifier.body.conv4_3"),
            ("Max Pooling 2 × 2, st = 2", "2 × 2 × 512", "classifier.body.pool4"),
            ("3×Conv 3 × 3", "2 × 2 × 512", "classifier.body.conv5_3"),
            ("Max Pooling 2 × 2, st = 2", "1 × 1 × 512", "classifier.body.pool5"),
            ("Adaptive Avg Pooling", "7 × 7 × 512", "classifier.body.enlarge"),
            ("Fully Connected", "4096", "classifier.body.fc1"),
            ("Fully Connected", "512", "classifier.body.fc2"),
            ("Fully Connected", "10", "classifier.head"),
        ],
    ),
    "Table A.7": (
        "resnet50",
        257,
        [
            ("Conv 7 × 7 st = 2", "112 × 112 × 64", "extractor.layers.conv1"),
            ("BatchNorm", "112 × 112 × 64", "extractor.layers.bn1"),
            ("Max Pooling 3 × 3, st = 2", "55 × 55 × 64", "extractor.layers.maxpool"),
            ("Residual Block #1", "55 × 55 × 256", "extractor.layers.layer1"),
            ("Residual Block #2", "28 × 28 × 512", "classifier.body.layer2"),
            ("Residual Block #3", "14 × 14 × 1024", "classifier.body.layer3"),
            ("Residual Block #4", "7 × 7 × 2048", "classifier.body.layer4"),
            ("Adaptive Avg Pooling", "1 × 1 × 2048", "classifier.body.avgpool"),
            ("Fully Connected", "257", "classifier.head"),
        ],
    ),
}
"""Table → architecture, number of classes, rows."""

GENERATORS: dict[str, tuple[Architecture, int, Printed]] = {
    "Table A.4": (
        "lenet5",
        10,
        [
            ("FC", "4 × 4 × 128", "project"),
            ("DeConv 3 × 3, st = 2", "9 × 9 × 48", "inner.0"),
            ("DeConv 3 × 3, st = 1", "11 × 11 × 12", "inner.3"),
            ("DeConv 4 × 4, st = 1", "14 × 14 × 6", "last"),
        ],
    ),
    "Table A.6": (
        "vgg16_32",
        10,
        [
            ("FC", "4 × 4 × 128", "project"),
            ("DeConv 4 × 4, st = 2", "8 × 8 × 128", "inner.0"),
            ("DeConv 4 × 4, st = 2", "16 × 16 × 128", "inner.3"),
            ("DeConv 4 × 4, st = 1", "17 × 17 × 64", "inner.6"),
            ("DeConv 4 × 4, st = 1", "16 × 16 × 64", "last"),
        ],
    ),
    "Table A.8": (
        "resnet50",
        257,
        [
            ("FC", "4 × 4 × 512", "project"),
            ("DeConv 4 × 4, st = 2", "8 × 8 × 512", "inner.0"),
            ("DeConv 4 × 4, st = 2", "16 × 16 × 256", "inner.3"),
            ("DeConv 2 × 2, st = 2", "30 × 30 × 256", "inner.6"),
            ("DeConv 2 × 2, st = 2", "56 × 56 × 256", "last"),
        ],
    ),
}

CRITICS: dict[str, tuple[Architecture, Printed]] = {
    "Table A.4": (
        "lenet5",
        [
            ("Conv 5 × 5, st = 2", "7 × 7 × 32", "layers.0"),
            ("Conv 5 × 5, st = 2", "4 × 4 × 64", "layers.2"),
            ("Conv 5 × 5, st = 2", "2 × 2 × 128", "layers.4"),
            ("FC", "512", "score"),
        ],
    ),
    "Table A.6": (
        "vgg16_32",
        [
            ("Conv 5 × 5, st = 2", "8 × 8 × 32", "layers.0"),
            ("Conv 5 × 5, st = 2", "4 × 4 × 64", "layers.2"),
            ("Conv 5 × 5, st = 2", "2 × 2 × 128", "layers.4"),
            ("FC", "512", "score"),
        ],
    ),
    "Table A.8": (
        "resnet50",
        [
            ("Conv 5 × 5, st = 2", "28 × 28 × 32", "layers.0"),
            ("Conv 5 × 5, st = 2", "14 × 14 × 64", "layers.2"),
            ("Conv 5 × 5, st = 2", "7 × 7 × 128", "layers.4"),
            ("FC", "6272", "score"),
            ("FC", "512", "score"),
        ],
    ),
}

SCHEDULE_FIELDS = {
    "learning_rate_extractor": "network_lr",
    "learning_rate_classifier": "network_lr",
    "learning_rate_generator": "generator_lr",
    "learning_rate_discriminator": "critic_lr",
    "iterations": "iterations",
    "batch_size": "batch",
    "n_c1": "classes_every",
    "n_c2": "merged_every",
    "n_w": "filter_weights_every",
    "n_d": "critic_updates",
    "gradient_penalty": "penalty",
    "rho": "rho",
    "delta": "threshold",
}
"""Metric of the published table → field of `DFGSettings`."""


@dataclass(frozen=True)
class Layer:
    """One row: what is printed, what the code gives."""

    table: str
    part: str
    layer: str
    printed: str
    ours: str
    inputs: str
    """Size of the flattened input, for linear layers."""

    @property
    def agrees(self) -> bool:
        """Whether the printed dimension is the module's output."""
        return self.printed == self.ours

    @property
    def cells(self) -> list[str]:
        """For a table of text."""
        note = "" if self.agrees else (f"printed is the input, {self.inputs}" if self.printed == self.inputs else "≠")
        return [self.table, self.part, self.layer, self.printed, self.ours, note]


def layers() -> list[Layer]:
    """Every printed layer of Tables A.3–A.8 beside the shape the code produces; computed without any arithmetic."""
    found = []
    for table, (architecture, classes, printed) in CLASSIFIERS.items():
        with torch.device("meta"):
            network = split_classifier(architecture, classes).eval()
            side, channels = (224, 3) if architecture == "resnet50" else (32, 1 if architecture == "lenet5" else 3)
            found += _rows(table, "classifier", printed, network, torch.zeros(1, channels, side, side))
    for table, (architecture, classes, printed) in GENERATORS.items():
        shape = FEATURE_GAN_SHAPES[architecture]
        with torch.device("meta"):
            made = FeatureGenerator(shape, classes).eval()
            inputs = torch.zeros(1, shape.noise), torch.zeros(1, classes), torch.ones(1, shape.feature_channels)
            found += _rows(table, "generator", printed, made, *inputs)
    for table, (architecture, printed) in CRITICS.items():
        shape = FEATURE_GAN_SHAPES[architecture]
        with torch.device("meta"):
            critic = FeatureDiscriminator(shape)
            features = torch.zeros(1, shape.feature_channels, shape.feature_side, shape.feature_side)
            found += _rows(table, "discriminator", printed, critic, features)
    return sorted(found, key=lambda layer: layer.table)


def layer_sentences(every: Sequence[Layer]) -> list[str]:
    """How many printed entries the code reproduces, and one sentence per entry that it cannot."""
    agreeing = sum(layer.agrees for layer in every)
    return [
        f"{agreeing} of {len(every)} printed layer dimensions of Tables A.3–A.8 are those of the code.",
        *(
            f"{layer.table}, {layer.part}, {layer.layer}: printed {layer.printed}, built {layer.ours}"
            + (f" from an input of {layer.inputs}." if layer.inputs else ".")
            for layer in every
            if not layer.agrees
        ),
    ]


def schedule_rows() -> list[Row]:
    """Appendix A's numbers as the code has them, for every data set of Table 2."""
    rows = []
    for dataset, settings in PAPER_SETTINGS.items():
        protocol = PROTOCOLS[dataset]  # type: ignore[index]
        values = {metric: float(getattr(settings, field)) for metric, field in SCHEDULE_FIELDS.items()}
        values |= dict(zip(("alpha", "beta", "gamma"), settings.objective, strict=True))
        rows += [
            Row(
                method="dfg",
                metric=metric,
                value=value,
                dataset=dataset,
                network=protocol.architecture,
                setting={"dataset": dataset},
            )
            for metric, value in values.items()
        ]
    return rows


def _rows(table: str, part: str, printed: Printed, network: nn.Module, *inputs: Tensor) -> list[Layer]:
    shapes: dict[str, str] = {}
    sizes: dict[str, str] = {}

    def keep(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        shapes[name] = _printed_form(output)
        if isinstance(module, nn.Linear):
            sizes[name] = str(module.in_features)

    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: keep(name, module, given, output)
        )
        for _, _, name in printed
    ]
    with torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    if part == "generator":  # the table prints the linear layer's output as the 4 × 4 map it is folded to
        shapes["project"] = f"4 × 4 × {int(shapes['project']) // 16}"
    return [Layer(table, part, label, size, shapes[name], sizes.get(name, "")) for label, size, name in printed]


def _printed_form(output: Tensor) -> str:
    channels, *sides = output.shape[1:] if output.dim() > 1 else output.shape
    return " × ".join(str(size) for size in (*sides, channels))
