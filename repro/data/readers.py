"""Sets published as arrays: idx files (MNIST family), CIFAR-10 and STL-10 binaries, SVHN, scikit-learn's digits."""

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
from repro.data.listing import DamagedFileError, Listing, Sample, choose_split
from repro.data.wsol_metadata import MaskFiles, WsolMetadata, image_scale, read_wsol_metadata


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
    if body.size != int(np.prod(shape)):
        raise DamagedFileError(f"{path}: header announces {shape}, but {body.size} bytes follow")
    return body.reshape(shape)


def mnist(folder: Path, split: str) -> Listing:
    """MNIST: 60,000 / 10,000 grey 28x28 digits."""
    return _idx_pair(folder, split, {"train": "train", "test": "t10k"}, DIGITS)


def fashion_mnist(folder: Path, split: str) -> Listing:
    """Fashion-MNIST: 60,000 / 10,000 grey 28x28 garments."""
    return _idx_pair(folder, split, {"train": "train", "test": "t10k"}, FASHION_MNIST)


def emnist_digits(folder: Path, split: str) -> Listing:
    """EMNIST digits: 240,000 / 40,000; the files hold transposed images, turned back here."""
    stem = choose_split({"train": "emnist-digits-train", "test": "emnist-digits-test"}, split, "emnist_digits")
    images = read_idx(folder / f"gzip/{stem}-images-idx3-ubyte.gz").transpose(0, 2, 1)
    return from_arrays(images, read_idx(folder / f"gzip/{stem}-labels-idx1-ubyte.gz"), DIGITS, split)


def cifar10(folder: Path, split: str) -> Listing:
    """CIFAR-10, binary version: records of one label byte and 3x32x32 bytes."""
    names = choose_split(
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}, split, "cifar10"
    )
    records = np.concatenate([_records(folder / "cifar-10-batches-bin" / name, 3073) for name in names])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return from_arrays(images, records[:, 0], CIFAR10, split)


def stl10(folder: Path, split: str) -> Listing:
    """STL-10, binary version: 5,000 / 8,000 labelled 96x96 images, column-major, labels from 1."""
    stem = choose_split({"train": "train", "test": "test"}, split, "stl10")
    images = _records(folder / f"stl10_binary/{stem}_X.bin", 3 * 96 * 96)
    labels = _records(folder / f"stl10_binary/{stem}_y.bin", 1)[:, 0]
    return from_arrays(images.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), labels - 1, STL10, split)


def svhn(folder: Path, split: str) -> Listing:
    """SVHN cropped digits: 73,257 / 26,032 colour 32x32; the file's label 10 is the digit 0."""
    path = folder / f"{choose_split({'train': 'train', 'test': 'test'}, split, 'svhn')}_32x32.mat"
    try:
        content = loadmat(path)
        images, labels = content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1)
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise DamagedFileError(f"{path}: no SVHN file: {error}") from error
    return from_arrays(images, labels % 10, DIGITS, split)


def digits(_: Path, split: str) -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8x8, 0..16 scaled to 0..255; every fourth image is `test`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    is_test = np.arange(len(bunch.target)) % 4 == 3
    chosen = choose_split({"train": ~is_test, "test": is_test}, split, "digits")
    images = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return from_arrays(images, bunch.target[chosen], DIGITS, split)


def from_arrays(
    images: UInt8[np.ndarray, "n h w *c"], labels: Integer[np.ndarray, " n"], classes: list[str], split: str
) -> Listing:
    """A listing over arrays in memory; grey images become RGB.

    Raises:
        DamagedFileError: numbers of images and labels differ, or a label names no class.
    """
    if len(images) != len(labels):
        raise DamagedFileError(f"{len(images)} images but {len(labels)} labels in split {split!r}")
    if len(labels) and int(labels.max()) >= len(classes):
        raise DamagedFileError(f"label {int(labels.max())} in split {split!r}, but {len(classes)} classes")

    def read(index: int) -> Sample:
        image = images[index]
        return Sample(np.stack([image] * 3, -1) if image.ndim == 2 else np.ascontiguousarray(image))

    ids = [f"{split}-{index:06d}" for index in range(len(images))]
    return Listing(ids, labels.astype(np.int64), classes, read)


def _idx_pair(folder: Path, split: str, stems: dict[str, str], classes: Sequence[str]) -> Listing:
    stem = choose_split(stems, split, folder.name)
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
    return from_arrays(images, read_idx(folder / f"{stem}-labels-idx1-ubyte.gz"), list(classes), split)


def _records(path: Path, size: int) -> UInt8[np.ndarray, "n size"]:
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % size:
        raise DamagedFileError(f"{path}: {content.size} bytes are not whole records of {size}")
    return content.reshape(-1, size)


# Sets whose folders or file names tell the class: CIFAR-10 as JPEG, CINIC-10, Caltech-256, Food-101, dogs vs cats,
# ImageNet folders and the one-image-per-class sample.

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


# Sets with boxes or masks: Tiny-ImageNet, CUB-200-2011, ILSVRC, OpenImages30k, Oxford-IIIT Pet.
#
# Boxes were drawn on the stored pixels, so EXIF orientation is not applied here.


def tiny_imagenet(folder: Path, split: str) -> Listing:
    """Tiny-ImageNet-200: 64x64; `test` is the official validation set (10,000), its test labels are secret.

    The files' boxes are inclusive (0..63); classes in sorted-synset order.
    """
    choose_split({"test": None}, split, "tiny_imagenet")
    base = folder / "tiny-imagenet-200"
    wnids = sorted((base / "wnids.txt").read_text().split())
    words = dict(line.split("\t", 1) for line in (base / "words.txt").read_text().splitlines() if "\t" in line)
    rows = [line.split("\t") for line in (base / "val/val_annotations.txt").read_text().splitlines()]
    position = {wnid: index for index, wnid in enumerate(wnids)}
    try:
        labels = np.array([position[row[1]] for row in rows], np.int64)
        boxes = np.array([row[2:6] for row in rows], np.int64).reshape(-1, 1, 4) + np.array([0, 0, 1, 1])
    except (KeyError, IndexError, ValueError) as error:
        raise DamagedFileError(f"{base / 'val/val_annotations.txt'}: malformed line: {error}") from error
    files = [base / "val/images" / row[0] for row in rows]

    def read(index: int) -> Sample:
        return Sample(read_image(files[index], upright=False), boxes=boxes[index])

    classes = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    return Listing([row[0] for row in rows], labels, _distinct(classes, wnids), read, files)


def cub(folder: Path, split: str) -> Listing:
    """CUB-200-2011 in the official layout, whole or some classes, images in original or reduced size.

    `train` and `test` are official; `val` is CUBV2 (its images below `CUBV2/`). Boxes refer to original pixels; the
    WSOL metadata knows the original sizes, so boxes of reduced images are scaled.
    """
    names = {"train": "train", "test": "test", "val": "val"}
    metadata = read_wsol_metadata(_metadata(folder) / "CUB" / choose_split(names, split, "cub"))
    base = folder / ("CUBV2" if split == "val" else "CUB_200_2011/images")
    classes = [line.split(" ", 1)[1] for line in _text_lines(folder / "CUB_200_2011/classes.txt")]
    if split == "val":
        members = {image for image in metadata.ids if image.split("/")[0] in classes}
    else:
        members = _cub_members(folder / "CUB_200_2011", is_train=split == "train")
    order = [index for index, image in enumerate(metadata.ids) if image in members]
    if len(order) != len(members):
        raise DamagedFileError(f"{len(members) - len(order)} images of {folder} are not in the metadata")
    return _with_boxes(base, metadata, order, classes)


def ilsvrc(folder: Path, split: str) -> Listing:
    """ILSVRC 2012 for localisation: `train` = official training set (`train/<synset>/*.JPEG`), without boxes;
    `test` = official validation set (`val/ILSVRC2012_val_*.JPEG`), `val` = ImageNetV2 (`val2/<class>/<n>.jpeg`), boxes
    from the WSOL metadata."""
    if choose_split({"train": True, "val": False, "test": False}, split, "ilsvrc"):
        return imagenet(folder, "train")
    metadata = read_wsol_metadata(_metadata(folder) / "ILSVRC" / split)
    return _with_boxes(folder, metadata, list(range(len(metadata.ids))), imagenet_classes())


def openimages30k(folder: Path, split: str) -> Listing:
    """OpenImages30k: 100 classes; masks (instances united) and ignore areas for `val` and `test`."""
    choose_split({"train": None, "val": None, "test": None}, split, "openimages30k")
    metadata = read_wsol_metadata(_metadata(folder) / "OpenImages" / split)
    files = [folder / image for image in metadata.ids]
    by_label = {label: image.split("/")[1] for image, label in zip(metadata.ids, metadata.labels, strict=True)}

    def read(index: int) -> Sample:
        image = read_image(files[index], upright=False)
        if metadata.masks is None:
            return Sample(image)
        mask, ignore = _unite(folder, metadata.masks[index], image.shape[:2])
        return Sample(image, mask=mask, ignore=ignore)

    return Listing(metadata.ids, metadata.labels, [by_label[k] for k in sorted(by_label)], read, files)


def oxford_pets(folder: Path, split: str) -> Listing:
    """Oxford-IIIT Pet: 37 breeds, `train` (trainval) and `test`; masks from the trimaps, whose border is ignored."""
    names = choose_split({"train": "trainval", "test": "test"}, split, "oxford_pets")
    rows = [line.split() for line in _text_lines(folder / f"annotations/{names}.txt") if not line.startswith("#")]
    stems = [row[0] for row in rows]
    labels = np.array([int(row[1]) - 1 for row in rows], np.int64)
    breeds = {label: stem.rsplit("_", 1)[0].replace("_", " ") for stem, label in zip(stems, labels, strict=True)}
    files = [folder / f"images/{stem}.jpg" for stem in stems]

    def read(index: int) -> Sample:
        image = read_image(files[index], upright=False)
        trimap = read_mask(folder / f"annotations/trimaps/{stems[index]}.png")
        _same_shape(trimap.shape, image.shape[:2])
        return Sample(image, mask=trimap == 1, ignore=trimap == 3)

    return Listing(stems, labels, [breeds[label] for label in sorted(breeds)], read, files)


def _with_boxes(base: Path, metadata: WsolMetadata, order: list[int], classes: list[str]) -> Listing:
    """Images of the WSOL metadata at the positions `order`, boxes scaled to the pixels at hand."""
    files = [base / metadata.ids[index] for index in order]

    def read(index: int) -> Sample:
        image = read_image(files[index], upright=False)
        original = None if metadata.sizes is None else metadata.sizes[order[index]]
        scale = image_scale((image.shape[1], image.shape[0]), original)
        return Sample(image, boxes=metadata.half_open_boxes(order[index]) * scale)

    return Listing([metadata.ids[index] for index in order], metadata.labels[order], classes, read, files)


def _cub_members(base: Path, is_train: bool) -> set[str]:
    names = dict(line.split() for line in _text_lines(base / "images.txt"))
    flags = dict(line.split() for line in _text_lines(base / "train_test_split.txt"))
    lacking = names.keys() - flags.keys()
    if lacking:
        raise DamagedFileError(f"{base}/train_test_split.txt lacks {len(lacking)} of {len(names)} images")
    return {name for number, name in names.items() if (flags[number] == "1") == is_train}


def _unite(folder: Path, names: MaskFiles, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Union of the instance masks, and the ignore area outside it; both at the image's size."""
    mask, ignore = np.zeros(shape, bool), np.zeros(shape, bool)
    for name in names.masks:
        mask |= _resized(read_mask(folder / name), shape)
    if names.ignore is not None:
        ignore = _resized(read_mask(folder / names.ignore), shape) & ~mask
    return mask, ignore


def _resized(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """OpenImages masks come at sizes of their own: nearest neighbour to the image's."""
    rows = (np.arange(shape[0]) + 0.5) * mask.shape[0] / shape[0]
    columns = (np.arange(shape[1]) + 0.5) * mask.shape[1] / shape[1]
    return mask[rows.astype(int)][:, columns.astype(int)] > 127


def _same_shape(mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    if mask != image:
        raise UnreadableImageError(f"trimap is {mask}, image {image}")


def _metadata(folder: Path) -> Path:
    return folder.parent / "wsol_metadata" / "metadata"


def _text_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _distinct(names: list[str], fallback: list[str]) -> list[str]:
    """Names, with the synset added where two classes share one."""
    return [name if names.count(name) == 1 else f"{name} ({key})" for name, key in zip(names, fallback, strict=True)]
