"""Sets published as arrays: idx files (MNIST family), CIFAR-10 and STL-10 binaries, SVHN, scikit-learn's digits."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from scipy.io import loadmat

from repro.data.labels import CIFAR10, DIGITS, FASHION_MNIST, STL10
from repro.data.listing import DamagedFileError, Listing, Sample, choose_split


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


def sklearn_digits(_: Path, split: str) -> Listing:
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
