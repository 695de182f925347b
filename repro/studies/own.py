"""Your own network and pictures: maps by every method side by side, the faithfulness table, one offline page."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from repro.catalogue import nearest
from repro.data.images import ImageSet, UnreadableImageError, read_image
from repro.explain.base import LayerInfo, layers
from repro.metrics.faithfulness import FaithfulnessSettings, explanation_scores, whole_image
from repro.models.classifiers import architecture_of, load_classifier
from repro.models.weights import weights_hash
from repro.project import UserError
from repro.report.galleries import map_gallery
from repro.report.html import data_table, key_value_table, stylesheet
from repro.report.plots import png_bytes
from repro.studies.explanations import AREA_MATCHED, PAPER_METHODS, Subject, SubjectSettings, make_maps

PHOTOS = Path(__file__).resolve().parents[1] / "data" / "photos"
"""Five photographs that may be passed on; see LICENCES.md there."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_CROP = 0.875  # of the short side, as the classifiers of ImageNet are evaluated
METHODS = (*PAPER_METHODS, AREA_MATCHED)
LABELS = {
    "gradcam": "Grad-CAM",
    "gradcampp": "Grad-CAM++",
    "xgradcam": "XGrad-CAM",
    "layercam": "LayerCAM",
    "scorecam": "Score-CAM",
    "auggradcampp": "Augmented Grad-CAM++",
    "scorecampp": "ScoreCAM++",
    AREA_MATCHED: "control: Score-CAM at ScoreCAM++'s area",
    "whole_image": "control: the whole image",
}


def read_photos(folder: Path, size: int) -> tuple[UInt8[Tensor, "n 3 s s"], list[str]]:
    """The images of a folder, short side scaled (bicubic), centre cropped to `size`, and their names.

    Raises:
        UserError: no folder, no image in it, or one that cannot be read.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise UserError(f"--images {folder}: no images there; expected a folder of {', '.join(SUFFIXES)} files")
    found = []
    for path in paths:
        try:
            pixels = torch.tensor(read_image(path)).permute(2, 0, 1)
        except UnreadableImageError as error:
            raise UserError(f"{path}: {error}; take it out or replace it") from error
        scaled = resize(pixels, [round(size / _CROP)], InterpolationMode.BICUBIC, antialias=True)
        found.append(center_crop(scaled, [size, size]))
    return torch.stack(found), [path.stem for path in paths]


def choose_layer(network: nn.Module, inputs: Float[Tensor, "n 3 h w"]) -> LayerInfo:
    """The last layer that the logits depend on and that is nowhere negative; else the last they depend on.

    Raises:
        UserError: no layer of the network is a grid that its logits depend on.
    """
    connected = [info for info in layers(network, inputs[:1]) if info.connected]
    if not connected:
        raise UserError("the network has no layer whose activation is a grid; name one with --layer")
    return next((info for info in reversed(connected) if not info.negative), connected[-1])


@dataclass(frozen=True)
class OwnStudy:
    """What `explain_images` found out."""

    subject: Subject
    layer: LayerInfo
    maps: dict[str, Float[Tensor, "n 1 h w"]]
    probabilities: Float[Tensor, " n"]
    rows: list[tuple[str, ...]]
    """The faithfulness table, a row per method."""
    warnings: list[str]
    facts: dict[str, str]

    def gallery(self) -> Figure:
        """Rows of images, columns of methods."""
        names = [self.subject.classifier.classes[target] for target in self.subject.targets]
        shown = {LABELS[name]: maps for name, maps in self.maps.items() if name != AREA_MATCHED}
        rows = [f"{name} ({100 * p:.0f} %)" for name, p in zip(names, self.probabilities.tolist(), strict=True)]
        title = f"{self.facts['network']}, layer {self.layer.name}: maps of the predicted class"
        return map_gallery(self.subject.images.images, shown, rows, title)

    def page(self) -> str:
        """One offline HTML page: picture, table, facts; no script, nothing fetched."""
        picture = base64.b64encode(png_bytes(self.gallery())).decode()
        alt = "Rows of images, columns of methods; warm colours mark where each method sees the predicted class."
        notes = "".join(f"<p><strong>Warning:</strong> {escape(text)}</p>" for text in self.warnings)
        title = f"{self.facts['network']}: explanations of {len(self.subject.images)} images"
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f"<style>{stylesheet()}</style></head><body><main><h1>{escape(title)}</h1>{notes}"
            f'<figure><img src="data:image/png;base64,{picture}" alt="{alt}"></figure>'
            f"{data_table(CAPTION, COLUMNS, self.rows)}{key_value_table('How', self.facts)}</main></body></html>"
        )


CAPTION = (
    "Faithfulness (ScoreCAM++, eq. 13 and 14): the image seen through each map. A map that covers more of the image "
    "drops less whatever it shows; compare methods of equal area, and with the controls."
)
COLUMNS = ("Method", "Average Drop % (lower is better)", "Increase in Confidence %", "Mean map area %")


def explain_images(
    architecture: str,
    weights: str | None,
    folder: Path = PHOTOS,
    *,
    layer: str | None = None,
    methods: Sequence[str] = METHODS,
    num_classes: int = 1000,
    augmented_copies: int = 16,
) -> OwnStudy:
    """Explain a network's predictions on the images of a folder by several methods.

    Args:
        architecture: `timm:NAME`, `torchvision:NAME`, or one of the package's own.
        weights: a file, `package`, `timm`, `torchvision`, or None for random ones.
        folder: of images; default: five photographs that come with the package.
        layer: dotted name; None: `choose_layer`.
        methods: among `METHODS`.
        num_classes: of the network.
        augmented_copies: of Augmented Grad-CAM++.

    Raises:
        UserError, ValueError: what cannot be explained, and what to do.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"unknown method '{method}': {nearest(method, METHODS)}")
    classifier = load_classifier(architecture, num_classes=num_classes, weights=weights, target_layer=layer or "")
    pixels, names = read_photos(folder, classifier.input_size)
    inputs = classifier.normalisation.apply(pixels)
    found = layers(classifier.network, inputs[:1])
    chosen = next((info for info in found if info.name == layer), None) if layer else None
    chosen = chosen or choose_layer(classifier.network, inputs)
    if layer and chosen.name != layer:
        raise UserError(f"--layer {layer}: no grid; {nearest(layer, [info.name for info in found])}")
    classifier = replace(classifier, target_layer=classifier.network.get_submodule(chosen.name))
    with torch.no_grad():
        probabilities, targets = classifier.network(inputs).softmax(1).max(1)
    images = ImageSet("own images", folder.name, pixels, targets, list(classifier.classes), names)
    settings = SubjectSettings(
        dataset="own images",
        images=len(pixels),
        architecture=architecture,
        weights=weights,
        epochs=0,
        layer=chosen.name,
    )
    key = weights_hash(weights, architecture_of(architecture).published) if weights else "random, seed 0"
    subject = Subject(settings, classifier, images, targets, 100.0, key, None)
    made = make_maps(subject, slice(0, len(pixels)), methods, augmented_copies)
    maps = {name: cam.cpu() for name, cam in made.items()}
    return OwnStudy(
        subject,
        chosen,
        maps,
        probabilities,
        _faithfulness(subject, maps),
        _signed(chosen, found),
        {
            "network": architecture,
            "weights": f"{weights or 'random'} (SHA-256 {key[:16]})",
            "layer": f"{chosen.name}: {chosen.channels} channels on {' × '.join(map(str, chosen.grid))} cells",
            "input": f"{classifier.input_size} px, {classifier.normalisation}",
            "images": ", ".join(names),
        },
    )


def _signed(chosen: LayerInfo, found: Sequence[LayerInfo]) -> list[str]:
    """A warning where the layer is negative in places and a rectified one exists."""
    better = [info.name for info in found if info.connected and not info.negative]
    if not chosen.negative or not better:
        return []
    text = (
        f"{100 * chosen.negative:.0f} % of the activation of {chosen.name} is negative: Score-CAM's masks then point "
        f"beside the object. Take a layer behind a rectifier, e.g. {better[-1]}"
    )
    warnings.warn(text, stacklevel=3)
    return [text]


def _faithfulness(subject: Subject, maps: dict[str, Tensor]) -> list[tuple[str, ...]]:
    everything = maps | {"whole_image": whole_image(next(iter(maps.values())))}
    stacked = torch.cat(list(everything.values()), dim=1)
    inputs = subject.inputs(slice(None))
    classifier, settings = subject.classifier, FaithfulnessSettings()
    scores = explanation_scores(
        classifier.network, inputs, stacked, subject.targets, settings, normalisation=classifier.normalisation
    )
    whole, masked = scores.original.probability[:, None], scores.masked.probability
    drop = 100 * ((whole - masked).clamp(min=0) / whole).mean(0)
    rise = 100 * (masked > whole).double().mean(0)
    area = 100 * scores.area.mean(0)
    return [(LABELS[name], f"{drop[i]:.1f}", f"{rise[i]:.0f}", f"{area[i]:.1f}") for i, name in enumerate(everything)]


def write_study(study: OwnStudy, folder: Path) -> Path:
    """The page and the picture alone, under `folder`; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "maps.png").write_bytes(png_bytes(study.gallery()))
    path = folder / "explanations.html"
    path.write_text(study.page(), encoding="utf-8")
    return path
