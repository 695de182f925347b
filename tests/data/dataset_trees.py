"""Small folders in the publishers' formats: a builder a set, which returns the number of images by split."""

import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Random bytes `(h, w, c)`."""
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save_image(path: Path, pixels: np.ndarray | None = None, size: tuple[int, int] = (40, 30)) -> None:
    """Write an image of `size` (width, height); the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(size[1], size[0]) if pixels is None else pixels).save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    """Lines without a newline after the last, as the WSOL metadata has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def write_idx(path: Path, array: np.ndarray) -> None:
    """Gzipped idx file of unsigned bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def wsol(folder: Path, rows: list[tuple[str, int, tuple[int, int], list[tuple[int, int, int, int]]]]) -> None:
    """Metadata of one split: image, label, (width, height), boxes."""
    write_lines(folder / "image_ids.txt", [row[0] for row in rows])
    write_lines(folder / "class_labels.txt", [f"{image},{label}" for image, label, _, _ in rows])
    write_lines(folder / "image_sizes.txt", [f"{image},{w},{h}" for image, _, (w, h), _ in rows])
    boxes = [f"{image}," + ",".join(map(str, box)) for image, _, _, found in rows for box in found]
    write_lines(folder / "localization.txt", boxes)


def dogs_vs_cats(root: Path, count: int = 10) -> dict[str, int]:
    """`count` cats and as many dogs, 40x30."""
    for animal in ("cat", "dog"):
        for number in range(count):
            save_image(root / f"dogs_vs_cats/train/{animal}.{number}.jpg")
    test = 2 * -(-count // 5)
    return {"train": 2 * count - test, "test": test}


def cub(root: Path, scale: float = 1.0) -> dict[str, int]:
    """Two classes, an image of each per split (`val` is CUBV2), metadata for 80x60 originals, images at `scale`."""
    base, rows, classes = root / "cub/CUB_200_2011", {"train": [], "test": [], "val": []}, ("001.Auk", "002.Jay")
    names = [f"{c}/{c[4:]}_{n}.jpg" for c in classes for n in (0, 1)]
    size = round(80 * scale), round(60 * scale)
    for number, name in enumerate(names):
        save_image(base / "images" / name, size=size)
        rows["train" if number % 2 else "test"].append((name, number // 2, (80, 60), [(8, 6, 48, 36)]))
    for label, name in enumerate(classes):
        save_image(root / f"cub/CUBV2/{name}/1.jpg", size=size)
        rows["val"].append((f"{name}/1.jpg", label, (80, 60), [(8, 6, 48, 36)]))
    for split, entries in rows.items():
        absent = ("200.Wren/absent.jpg", 199, (10, 10), [(0, 0, 5, 5)])
        wsol(root / f"wsol_metadata/metadata/CUB/{split}", [absent, *entries[::-1]])
    write_lines(base / "images.txt", [f"{i + 1} {name}" for i, name in enumerate(names)])
    write_lines(base / "train_test_split.txt", [f"{i + 1} {i % 2}" for i in range(4)])
    write_lines(base / "classes.txt", ["1 001.Auk", "2 002.Jay"])
    return {"train": 2, "val": 2, "test": 2}


def tiny_imagenet(root: Path) -> dict[str, int]:
    """Two images of two classes with inclusive boxes."""
    base = root / "tiny_imagenet/tiny-imagenet-200"
    write_lines(base / "wnids.txt", ["n02", "n01"])
    write_lines(base / "words.txt", ["n01\tcrane, bird", "n02\tcrane"])
    write_lines(base / "val/val_annotations.txt", ["val_0.JPEG\tn02\t0\t32\t44\t62", "val_1.JPEG\tn01\t3\t3\t63\t63"])
    for number in range(2):
        save_image(base / f"val/images/val_{number}.JPEG", size=(64, 64))
    return {"test": 2}


def openimages(root: Path) -> dict[str, int]:
    """Per split one image with two instances and an ignore area, masks at half size, and one without ignore area."""
    base = root / "openimages30k"
    for split in ("train", "val", "test"):
        folder = root / f"wsol_metadata/metadata/OpenImages/{split}"
        first, second = f"{split}/0a/one.jpg", f"{split}/0b/two.jpg"
        write_lines(folder / "image_ids.txt", [first, second])
        write_lines(folder / "class_labels.txt", [f"{first},0", f"{second},1"])
        for image in (first, second):
            save_image(base / image, size=(40, 40))
        if split == "train":
            continue
        lines = [f"{first},{split}/0a/m1.png,{split}/0a/i.png", f"{first},{split}/0a/m2.png,"]
        write_lines(folder / "localization.txt", [*lines, f"{second},{split}/0b/m.png,"])
        planes = {name: np.zeros((20, 20), np.uint8) for name in ("0a/m1", "0a/m2", "0a/i", "0b/m")}
        planes["0a/m1"][:10], planes["0a/m2"][:, :10], planes["0a/i"][:, 5:] = 255, 255, 255
        for name, plane in planes.items():
            save_image(base / f"{split}/{name}.png", plane)
    return {"train": 2, "val": 2, "test": 2}


def oxford_pets(root: Path) -> dict[str, int]:
    """One image per split and breed with a trimap."""
    base = root / "oxford_pets"
    lines = ["great_pyrenees_1 1 2 1", "pug_7 2 2 2"]
    for split in ("trainval", "test"):
        write_lines(base / f"annotations/{split}.txt", ["#Image CLASS-ID SPECIES BREED ID", *lines])
    trimap = np.full((30, 40), 2, np.uint8)
    trimap[:10], trimap[10:12] = 1, 3
    for line in lines:
        stem = line.split()[0]
        save_image(base / f"images/{stem}.jpg")
        save_image(base / f"annotations/trimaps/{stem}.png", trimap)
    return {"train": 2, "test": 2}


def svhn(root: Path) -> dict[str, int]:
    """MATLAB files of ten digits each, height x width x channel x image, labels 10 (= zero), 1, … 9."""
    for split in ("train", "test"):
        path = root / f"svhn/{split}_32x32.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = np.array([10, *range(1, 10)], np.uint8)[:, None]
        savemat(path, {"X": noise(32, 32, 30).reshape(32, 32, 3, 10), "y": labels})
    return {"train": 10, "test": 10}


def idx_files(stems: dict[str, Path], per_class: int = 1) -> dict[str, int]:
    """Pairs of idx files with `per_class` noise images of each of ten classes."""
    for stem in stems.values():
        write_idx(Path(f"{stem}-images-idx3-ubyte.gz"), RNG.integers(0, 256, (10 * per_class, 28, 28), dtype=np.uint8))
        write_idx(Path(f"{stem}-labels-idx1-ubyte.gz"), np.tile(np.arange(10, dtype=np.uint8), per_class))
    return dict.fromkeys(stems, 10 * per_class)


def mnist(root: Path, name: str = "mnist") -> dict[str, int]:
    """The four files of MNIST or Fashion-MNIST."""
    return idx_files({"train": root / name / "train", "test": root / name / "t10k"})


def fashion_mnist(root: Path) -> dict[str, int]:
    """As MNIST."""
    return mnist(root, "fashion_mnist")


def emnist_digits(root: Path) -> dict[str, int]:
    """The four files of the folder `gzip/`."""
    return idx_files({split: root / f"emnist_digits/gzip/emnist-digits-{split}" for split in ("train", "test")})


def cifar10(root: Path) -> dict[str, int]:
    """Binary batches: a label byte and three planes of 32x32; two images in each of six files."""
    base = root / "cifar10/cifar-10-batches-bin"
    base.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = [bytes([(2 * number + i) % 10]) + noise(32, 96, 1).tobytes() for i in range(2)]
        (base / f"{name}.bin").write_bytes(b"".join(records))
    return {"train": 10, "test": 2}


def stl10(root: Path) -> dict[str, int]:
    """Binary files: planes of 96x96, column by column, and labels from 1."""
    base = root / "stl10/stl10_binary"
    base.mkdir(parents=True)
    for split in ("train", "test"):
        (base / f"{split}_X.bin").write_bytes(noise(96, 96, 30).tobytes())
        (base / f"{split}_y.bin").write_bytes(bytes(range(1, 11)))
    return {"train": 10, "test": 10}


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10_jpg(root: Path) -> dict[str, int]:
    """`train|test/<class>/<n>.jpg`."""
    for split in ("train", "test"):
        for name in CIFAR10:
            save_image(root / f"cifar10_jpg/{split}/{name}/0001.jpg", size=(32, 32))
    return {"train": 10, "test": 10}


def cinic10(root: Path) -> dict[str, int]:
    """`train|valid|test/<class>/<name>.png`."""
    for split in ("train", "valid", "test"):
        for name in CIFAR10:
            save_image(root / f"cinic10/{split}/{name}/cifar10-{split}-1.png", size=(32, 32))
    return {"train": 10, "val": 10, "test": 10}


def caltech256(root: Path, per_class: int = 82) -> dict[str, int]:
    """Two classes of the 257, more images than the 60 and 20 that are taken."""
    for number in range(per_class):
        for name in ("001.ak47", "257.clutter"):
            save_image(root / f"caltech256/256_ObjectCategories/{name}/{name[:3]}_{number:04}.jpg", size=(8, 8))
    return {"train": 120, "test": 40}


def food101(root: Path) -> dict[str, int]:
    """Two classes with lists of their training and test images."""
    base = root / "food101/food-101"
    write_lines(base / "meta/classes.txt", ["apple_pie", "baklava"])
    lists = {"train": ["apple_pie/1", "baklava/2"], "test": ["baklava/12", "apple_pie/3"]}
    for split, names in lists.items():
        write_lines(base / f"meta/{split}.txt", names)
        for name in names:
            save_image(base / f"images/{name}.jpg")
    return {"train": 2, "test": 2}


SYNSETS = {"n01440764": "tench", "n15075141": "toilet_tissue"}
"""The first and the last of ImageNet's 1,000."""


def imagenet(root: Path, name: str = "imagenet") -> dict[str, int]:
    """`train|val/<synset>/*.JPEG`."""
    for synset in SYNSETS:
        save_image(root / f"{name}/train/{synset}/{synset}_1.JPEG")
        save_image(root / f"{name}/val/{synset}/ILSVRC2012_val_{synset[-4:]}.JPEG")
    return {"train": 2, "test": 2}


def imagenet_sample(root: Path) -> dict[str, int]:
    """`<synset>_<name>.JPEG`."""
    for synset, name in SYNSETS.items():
        save_image(root / f"imagenet_sample/{synset}_{name}.JPEG")
    return {"test": 2}


def ilsvrc(root: Path) -> dict[str, int]:
    """Training folders, validation images and ImageNetV2 with the benchmark's metadata; boxes are inclusive."""
    imagenet(root, "ilsvrc")
    names = {"test": "val/ILSVRC2012_val_{:08}.JPEG", "val": "val2/{}/0.jpeg"}
    for split, pattern in names.items():
        rows = [(pattern.format(label), label, (40, 30), [(0, 0, 39, 29), (5, 6, 7, 8)]) for label in (0, 999)]
        wsol(root / f"wsol_metadata/metadata/ILSVRC/{split}", rows)
        for image, *_ in rows:
            save_image(root / "ilsvrc" / image)
    return {"train": 2, "val": 2, "test": 2}


TREES = {
    "openimages30k": openimages,
    **{
        build.__name__: build
        for build in (
            mnist, fashion_mnist, emnist_digits, cifar10, cifar10_jpg, svhn, stl10, cinic10, dogs_vs_cats, oxford_pets,
            caltech256, food101, imagenet, imagenet_sample, tiny_imagenet, cub, ilsvrc,
        )
    },
}  # fmt: skip
"""Every stored set of the registry, by name."""
