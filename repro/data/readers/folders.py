"""Sets whose folders or file names tell the class: CIFAR-10 as JPEG, CINIC-10, Caltech-256, Food-101, dogs vs cats,
ImageNet folders and the one-image-per-class sample."""

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from repro.data.images import UnreadableImageError, read_image
from repro.data.labels import CIFAR10
from repro.data.listing import DamagedFileError, Listing, Sample, choose_split

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def cifar10_jpg(folder: Path, split: str) -> Listing:
    """CIFAR-10 re-encoded as JPEG: `train|test/<class>/<n>.jpg`."""
    return class_folders(folder / choose_split({"train": "train", "test": "test"}, split, "cifar10_jpg"), CIFAR10)


def cinic10(folder: Path, split: str) -> Listing:
    """CINIC-10: `train|valid|test/<class>/<name>.png`, classes as CIFAR-10; `val` is the folder `valid`."""
    names = {"train": "train", "val": "valid", "test": "test"}
    return class_folders(folder / choose_split(names, split, "cinic10"), CIFAR10)


def caltech256(folder: Path, split: str) -> Listing:
    """Caltech-256 with the 257th class `clutter`; 60 images a class for `train`, 20 others for `test` (DFG, Table 1).

    The publisher has no split: each class is shuffled by a fixed seed (0), so the split is the same everywhere.
    """
    everything = class_folders(folder / "256_ObjectCategories")
    classes = [name.split(".", 1)[-1] for name in everything.classes]
    first, last = choose_split({"train": (0, 60), "test": (60, 80)}, split, "caltech256")
    rng = np.random.default_rng(0)
    chosen: list[int] = []
    for label in range(len(classes)):
        members = rng.permutation(np.flatnonzero(everything.labels == label))
        chosen += sorted(members[first:last].tolist())
    return _part(everything, chosen, classes)


def food101(folder: Path, split: str) -> Listing:
    """Food-101: `images/<class>/<id>.jpg`, 750 noisy training and 250 clean test images a class."""
    base = folder / "food-101"
    classes = _lines(base / "meta/classes.txt")
    names = _lines(base / f"meta/{choose_split({'train': 'train', 'test': 'test'}, split, 'food101')}.txt")
    labels = [_index(classes, name.split("/")[0]) for name in names]
    return from_files([base / f"images/{name}.jpg" for name in names], names, labels, classes)


def dogs_vs_cats(folder: Path, split: str) -> Listing:
    """Kaggle dogs vs cats: `train/{cat,dog}.<n>.jpg`; n divisible by 5 is `test`, the rest `train`.

    Kaggle's own test images have no labels, hence this split of the labelled ones.
    """
    wants_test = choose_split({"train": False, "test": True}, split, "dogs_vs_cats")
    pattern = re.compile(r"(cat|dog)\.(\d+)\.jpg")
    found = []
    for path in (folder / "train").iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[2]) % 5 == 0) == wants_test:
            found.append((match[1], int(match[2]), path))
    found.sort()
    labels = [int(animal == "dog") for animal, _, _ in found]
    paths = [path for _, _, path in found]
    return from_files(paths, [path.name for path in paths], labels, ["cat", "dog"])


def imagenet(folder: Path, split: str) -> Listing:
    """ImageNet folders `val/<synset>/*.JPEG` (and `train/…` where present); `test` is the official validation set.

    The class index is the position of the synset among all 1,000, also where some folders are absent.
    """
    base = folder / choose_split({"train": "train", "test": "val"}, split, "imagenet")
    paths = sorted(path for path in base.glob("n*/*") if path.suffix.lower() in _SUFFIXES)
    labels = [_index(synsets(), path.parent.name) for path in paths]
    return from_files(paths, [f"{path.parent.name}/{path.name}" for path in paths], labels, imagenet_classes())


def imagenet_sample(folder: Path, split: str) -> Listing:
    """One image each of 900 ImageNet classes, `<synset>_<name>.JPEG`; only a `test` split."""
    choose_split({"test": None}, split, "imagenet_sample")
    paths = sorted(folder.glob("n*_*.JPEG"))
    labels = [_index(synsets(), path.name.split("_")[0]) for path in paths]
    return from_files(paths, [path.name for path in paths], labels, imagenet_classes())


@cache
def synsets() -> list[str]:
    """The 1,000 WordNet ids of ILSVRC 2012 in sorted order: position = class index of torchvision's networks."""
    return json.loads(resources.files("repro.data").joinpath("imagenet_synsets.json").read_text())


@cache
def imagenet_classes() -> list[str]:
    """English names of the 1,000 classes in torchvision's order (both maillots and both cranes carry their index)."""
    from torchvision.models import SqueezeNet1_0_Weights

    names = SqueezeNet1_0_Weights.IMAGENET1K_V1.meta["categories"]
    return [name if names.count(name) == 1 else f"{name} {index}" for index, name in enumerate(names)]


def class_folders(base: Path, classes: Sequence[str] | None = None) -> Listing:
    """`<class>/<image>` below `base`; classes are the sorted folder names unless given.

    Raises:
        FileNotFoundError: no such folder.
        DamagedFileError: a folder is no known class.
    """
    folders = sorted(path for path in base.iterdir() if path.is_dir())
    names = list(classes) if classes is not None else [path.name for path in folders]
    paths, labels = [], []
    for folder in folders:
        members = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        paths += members
        labels += [_index(names, folder.name)] * len(members)
    return from_files(paths, [f"{path.parent.name}/{path.name}" for path in paths], labels, names)


def from_files(paths: list[Path], ids: list[str], labels: Sequence[int], classes: list[str]) -> Listing:
    """A listing of image files without boxes."""
    return Listing(ids, np.array(labels, np.int64), classes, lambda index: Sample(read_image(paths[index])), paths)


def read_mask(path: Path) -> np.ndarray:
    """Bytes `(h, w)` of a single-channel mask file.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    pixels = read_image(path, upright=False)
    if (pixels != pixels[..., :1]).any():
        raise UnreadableImageError(f"mask {path.name} is in colour")
    return pixels[..., 0]


def _part(listing: Listing, chosen: list[int], classes: list[str]) -> Listing:
    files = listing.files or []
    paths = [files[i] for i in chosen]
    return from_files(paths, [listing.ids[i] for i in chosen], listing.labels[chosen].tolist(), classes)


def _index(classes: Sequence[str], name: str) -> int:
    try:
        return classes.index(name)
    except ValueError as error:
        raise DamagedFileError(f"{name!r} is none of the {len(classes)} classes ({classes[0]!r} …)") from error


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
