"""From a prepared folder to the list of its images: `(folder, split)` → `Listing`, one a format."""

import gzip
import json
import re
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from scipy.io import loadmat

from repro.data.images import CIFAR10, DIGITS, FASHION_MNIST, STL10, UnreadableImageError, read_image
from repro.data.listing import DamagedFileError, Listing, Sample
from repro.data.wsol_metadata import (
    WsolMetadata,
    read_lines,
    read_rows,
    read_wsol_metadata,
    refuse_first,
    whole_numbers,
)

# Sets published as arrays.


def digits(_: Path, split: str) -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8x8, 0..16 scaled to 0..255; every fourth image is `test`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    chosen = (np.arange(len(bunch.target)) % 4 == 3) == (split == "test")
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return from_arrays(images, bunch.target[chosen], DIGITS, split)


def mnist(folder: Path, split: str) -> Listing:
    """MNIST: 60,000 / 10,000 grey 28x28 digits."""
    return _idx_pair(folder / {"train": "train", "test": "t10k"}[split], DIGITS, split)


def fashion_mnist(folder: Path, split: str) -> Listing:
    """Fashion-MNIST: 60,000 / 10,000 grey 28x28 garments."""
    return _idx_pair(folder / {"train": "train", "test": "t10k"}[split], FASHION_MNIST, split)


def emnist_digits(folder: Path, split: str) -> Listing:
    """EMNIST digits: 240,000 / 40,000; the files hold transposed images, turned back here."""
    return _idx_pair(folder / f"gzip/emnist-digits-{split}", DIGITS, split, transposed=True)


def cifar10(folder: Path, split: str) -> Listing:
    """CIFAR-10, binary version: records of one label byte and 3x32x32 bytes."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = np.concatenate([_records(folder / "cifar-10-batches-bin" / name, 3073) for name in names])
    return from_arrays(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0], CIFAR10, split)


def stl10(folder: Path, split: str) -> Listing:
    """STL-10, binary version: 5,000 / 8,000 labelled 96x96 images, column-major, labels from 1."""
    images = _records(folder / f"stl10_binary/{split}_X.bin", 3 * 96 * 96)
    labels = _records(folder / f"stl10_binary/{split}_y.bin", 1)[:, 0].astype(np.int64) - 1
    return from_arrays(images.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), labels, STL10, split)


def svhn(folder: Path, split: str) -> Listing:
    """SVHN cropped digits: 73,257 / 26,032 colour 32x32; the file's label 10 is the digit 0."""
    path = folder / f"{split}_32x32.mat"
    try:
        content = loadmat(path)
        images, labels = content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1)
        sound = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.dtype.kind in "ui"
    except FileNotFoundError:
        raise
    except Exception as error:  # SciPy's reader fails in every way there is on damaged files
        raise DamagedFileError(f"{path}: no SVHN file: {error}") from error
    if not sound or (len(labels) and not (labels.min() >= 1 and labels.max() <= 10)):
        raise DamagedFileError(f"{path}: expected 32x32 colour images of bytes and labels 1 to 10")
    return from_arrays(images, labels % 10, DIGITS, split)


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes (LeCun's MNIST format), gzipped or plain.

    Raises:
        DamagedFileError: wrong magic number, or more or fewer bytes than the header announces.
        FileNotFoundError: no such file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dimensions = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    except (struct.error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedFileError(f"{path}: truncated or no idx file: {error}") from error
    if (zeros, kind) != (0, 8):
        raise DamagedFileError(f"{path}: no idx file of unsigned bytes (magic {content[:4].hex()})")
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if body.size != int(np.prod(shape, dtype=object)):
        raise DamagedFileError(f"{path}: header announces {shape}, but {body.size} bytes follow")
    return body.reshape(shape)


def from_arrays(
    images: UInt8[np.ndarray, "n h w *c"], labels: Integer[np.ndarray, " n"], classes: Sequence[str], split: str
) -> Listing:
    """A listing over arrays in memory; grey images become RGB.

    Raises:
        DamagedFileError: numbers of images and labels differ, or a label names no class.
    """
    if len(images) != len(labels):
        raise DamagedFileError(f"{len(images)} images but {len(labels)} labels in split {split!r}")

    def read(index: int) -> Sample:
        image = images[index]
        return Sample(np.stack([image] * 3, -1) if image.ndim == 2 else np.ascontiguousarray(image))

    ids = [f"{split}-{index:06d}" for index in range(len(images))]
    return Listing(ids, labels.astype(np.int64), list(classes), read)


def _idx_pair(stem: Path, classes: Sequence[str], split: str, transposed: bool = False) -> Listing:
    images, labels = (read_idx(Path(f"{stem}-{kind}-ubyte.gz")) for kind in ("images-idx3", "labels-idx1"))
    if (images.ndim, labels.ndim) != (3, 1) or len(images) != len(labels):
        raise DamagedFileError(f"{stem}: images {images.shape} and labels {labels.shape} do not belong together")
    return from_arrays(images.transpose(0, 2, 1) if transposed else images, labels, classes, split)


def _records(path: Path, size: int) -> UInt8[np.ndarray, "n size"]:
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % size:
        raise DamagedFileError(f"{path}: {content.size} bytes are not whole records of {size}")
    return content.reshape(-1, size)


# Sets whose folders, lists or file names tell the class.

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def cifar10_jpg(folder: Path, split: str) -> Listing:
    """CIFAR-10 re-encoded as JPEG: `train|test/<class>/<n>.jpg`."""
    return class_folders(folder / split, CIFAR10)


def cinic10(folder: Path, split: str) -> Listing:
    """CINIC-10: `train|valid|test/<class>/<name>.png`, classes as CIFAR-10; `val` is the folder `valid`."""
    return class_folders(folder / ("valid" if split == "val" else split), CIFAR10)


def caltech256(folder: Path, split: str) -> Listing:
    """Caltech-256 with the 257th class `clutter`; 60 images a class for `train`, 20 others for `test` (DFG, Table 1).

    The publisher has no split: each class is shuffled by a fixed seed (0), so the split is the same everywhere.
    """
    everything = class_folders(folder / "256_ObjectCategories")
    first, last = {"train": (0, 60), "test": (60, 80)}[split]
    rng, chosen = np.random.default_rng(0), []
    for label in range(len(everything.classes)):
        members = rng.permutation(np.flatnonzero(everything.labels == label))
        chosen += sorted(members[first:last].tolist())
    paths = [(everything.files or [])[i] for i in chosen]
    classes = [name.split(".", 1)[-1] for name in everything.classes]
    return from_files(paths, [everything.ids[i] for i in chosen], everything.labels[chosen].tolist(), classes)


def food101(folder: Path, split: str) -> Listing:
    """Food-101: `images/<class>/<id>.jpg`, 750 noisy training and 250 clean test images a class."""
    base = folder / "food-101"
    classes, names = ([line for line in read_lines(base / f"meta/{n}.txt") if line] for n in ("classes", split))
    labels = [_index(classes, name.split("/")[0]) for name in names]
    return from_files([base / f"images/{name}.jpg" for name in names], names, labels, classes)


def dogs_vs_cats(folder: Path, split: str) -> Listing:
    """Kaggle dogs vs cats: `train/{cat,dog}.<n>.jpg`; n divisible by 5 is `test`, the rest `train`.

    Kaggle's own test images have no labels, hence this split of the labelled ones.
    """
    matches = [re.fullmatch(r"(cat|dog)\.(\d+)\.jpg", path.name) for path in (folder / "train").iterdir()]
    found = sorted((match[1], int(match[2]), match[0]) for match in matches if match)
    chosen = [(animal, name) for animal, number, name in found if (number % 5 == 0) == (split == "test")]
    labels = [int(animal == "dog") for animal, _ in chosen]
    return from_files([folder / "train" / name for _, name in chosen], [n for _, n in chosen], labels, ["cat", "dog"])


def imagenet(folder: Path, split: str) -> Listing:
    """ImageNet folders `val/<synset>/*.JPEG` (and `train/…` where present); `test` is the official validation set.

    The class index is the position of the synset among all 1,000, also where some folders are absent.
    """
    base = folder / {"train": "train", "test": "val"}[split]
    paths = sorted(path for path in base.glob("n*/*") if path.suffix.lower() in _SUFFIXES)
    labels = [_index(synsets(), path.parent.name) for path in paths]
    return from_files(paths, [f"{path.parent.name}/{path.name}" for path in paths], labels, imagenet_classes())


def imagenet_sample(folder: Path, _split: str) -> Listing:
    """One image per ImageNet class, `<synset>_<name>.JPEG`; only a `test` split."""
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


def _index(classes: Sequence[str], name: str) -> int:
    try:
        return classes.index(name)
    except ValueError as error:
        raise DamagedFileError(f"{name!r} is none of the {len(classes)} classes ({classes[0]!r} …)") from error


# Sets with boxes or masks. These were drawn on the stored pixels, so EXIF orientation is not applied here.


def tiny_imagenet(folder: Path, _split: str) -> Listing:
    """Tiny-ImageNet-200: 64x64; `test` is the official validation set (10,000), its test labels are secret.

    The files' boxes are inclusive (0..63); classes in sorted-synset order.
    """
    base = folder / "tiny-imagenet-200"
    wnids = sorted(name for line in read_lines(base / "wnids.txt") for name in line.split())
    words = dict(line.split("\t", 1) for line in read_lines(base / "words.txt") if "\t" in line)
    path = base / "val/val_annotations.txt"
    rows = read_rows(path, 6, "\t")
    labels = np.array([wnids.index(row[1]) if row[1] in wnids else -1 for row in rows], np.int64)
    refuse_first(labels < 0, path, "a class that is not in wnids.txt")
    boxes = whole_numbers([row[2:] for row in rows], path).reshape(-1, 4) + np.array([0, 0, 1, 1])
    refuse_first(boxes[:, 2:] <= boxes[:, :2], path, "a box without area")
    refuse_first((boxes < 0) | (boxes > 64), path, "a box that leaves its 64x64 image")
    files = [base / "val/images" / row[0] for row in rows]
    if len(files) != (there := sum(1 for _ in (base / "val/images").iterdir())):
        raise DamagedFileError(f"{path}: {len(files)} lines, but there are {there} images")

    def read(index: int) -> Sample:
        return Sample(read_image(files[index], upright=False), boxes=boxes[index : index + 1])

    names = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    # The synset is added where two classes share a name.
    classes = [n if names.count(n) == 1 else f"{n} ({key})" for n, key in zip(names, wnids, strict=True)]
    return Listing([row[0] for row in rows], labels, classes, read, files, [path])


def cub(folder: Path, split: str) -> Listing:
    """CUB-200-2011 in the official layout, whole or some classes, images in original or reduced size.

    `train` and `test` are official; `val` is CUBV2 (its images below `CUBV2/`). Boxes refer to original pixels; the
    WSOL metadata knows the original sizes, so boxes of reduced images are scaled.
    """
    metadata, base = _metadata(folder, f"CUB/{split}"), folder / "CUB_200_2011"
    classes = [name for _, name in read_rows(base / "classes.txt", 2, None)]
    if split == "val":
        members = {image for image in metadata.ids if image.split("/")[0] in classes}
    else:
        flags = dict(read_rows(base / "train_test_split.txt", 2, None))
        names = dict(read_rows(base / "images.txt", 2, None))
        if lacking := names.keys() - flags.keys():
            raise DamagedFileError(f"{base}/train_test_split.txt lacks {len(lacking)} of {len(names)} images")
        members = {name for number, name in names.items() if (flags[number] == "1") == (split == "train")}
    order = [index for index, image in enumerate(metadata.ids) if image in members]
    if len(order) != len(members):
        raise DamagedFileError(f"{len(members) - len(order)} images of {folder} are not in the metadata")
    return _with_boxes(folder / "CUBV2" if split == "val" else base / "images", metadata, order, classes)


def ilsvrc(folder: Path, split: str) -> Listing:
    """ILSVRC 2012 for localisation: `train` = official training set (`train/<synset>/*.JPEG`), without boxes;
    `test` = official validation set (`val/ILSVRC2012_val_*.JPEG`), `val` = ImageNetV2 (`val2/<class>/<n>.jpeg`), boxes
    from the WSOL metadata."""
    if split == "train":
        return imagenet(folder, "train")
    metadata = _metadata(folder, f"ILSVRC/{split}")
    return _with_boxes(folder, metadata, list(range(len(metadata.ids))), imagenet_classes())


def openimages30k(folder: Path, split: str) -> Listing:
    """OpenImages30k: 100 classes; masks (instances united) and ignore areas for `val` and `test`.

    As in the benchmark, any value above zero is object, and each mask goes from its own size to the wanted one at once.
    """
    metadata = _metadata(folder, f"OpenImages/{split}")
    files = [folder / image for image in metadata.ids]
    by_label = {label: Path(image).parent.name for image, label in zip(metadata.ids, metadata.labels, strict=True)}

    def read(index: int) -> Sample:
        image = read_image(files[index], upright=False)
        if metadata.masks is None:
            return Sample(image)
        names, ignore = metadata.masks[index]
        masks = tuple(read_mask(folder / name) > 0 for name in names)
        return Sample(image, masks=masks, ignore=read_mask(folder / ignore) > 0 if ignore else None)

    planes = [folder / name for names, ignore in metadata.masks or [] for name in (*names, ignore) if name]
    classes = [by_label[label] for label in sorted(by_label)]
    beside = [*metadata.files, *planes]
    return Listing(metadata.ids, metadata.labels, classes, read, files, beside, metadata.masks is not None)


def oxford_pets(folder: Path, split: str) -> Listing:
    """Oxford-IIIT Pet: 37 breeds, `train` (trainval) and `test`; masks from the trimaps, whose border is ignored."""
    path = folder / f"annotations/{'trainval' if split == 'train' else 'test'}.txt"
    lines = [line for line in read_lines(path) if not line.startswith("#")]
    rows = [line.split() for line in lines]
    refuse_first(np.array([len(row) != 4 for row in rows]), path, "expected 4 fields (lines with # not counted)")
    stems, labels = [row[0] for row in rows], whole_numbers([row[1:2] for row in rows], path)[:, 0] - 1
    refuse_first((labels < 0) | (labels >= 37), path, "a breed outside 1..37")
    breeds = {label: stem.rsplit("_", 1)[0].replace("_", " ") for stem, label in zip(stems, labels, strict=True)}
    files = [folder / f"images/{stem}.jpg" for stem in stems]
    trimaps = [folder / f"annotations/trimaps/{stem}.png" for stem in stems]

    def read(index: int) -> Sample:
        image, trimap = read_image(files[index], upright=False), read_mask(trimaps[index])
        if trimap.shape != image.shape[:2]:
            raise UnreadableImageError(f"trimap is {trimap.shape}, image {image.shape[:2]}")
        return Sample(image, masks=(trimap == 1,), ignore=trimap == 3)

    classes = [breeds[label] for label in sorted(breeds)]
    return Listing(stems, labels, classes, read, files, trimaps, has_masks=True)


def read_mask(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Bytes of a single-channel mask file.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    pixels = read_image(path, upright=False)
    if (pixels != pixels[..., :1]).any():
        raise UnreadableImageError(f"mask {path.name} is in colour")
    return pixels[..., 0]


def _metadata(folder: Path, split: str) -> WsolMetadata:
    return read_wsol_metadata(folder.parent / "wsol_metadata/metadata" / split)


def _with_boxes(base: Path, metadata: WsolMetadata, order: list[int], classes: list[str]) -> Listing:
    """Images of the WSOL metadata at the positions `order`, boxes scaled to the pixels at hand."""
    files, sizes = [base / metadata.ids[index] for index in order], metadata.sizes
    assert sizes is not None

    def read(index: int) -> Sample:
        image = read_image(files[index], upright=False)
        scale = np.tile(np.array([image.shape[1], image.shape[0]]) / sizes[order[index]], 2)
        return Sample(image, boxes=metadata.half_open_boxes(order[index]) * scale)

    ids = [metadata.ids[index] for index in order]
    return Listing(ids, metadata.labels[order], classes, read, files, metadata.files)
