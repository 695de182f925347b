"""Small folders in the publishers' formats."""

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


def dogs_vs_cats(root: Path, count: int = 10) -> Path:
    """`count` cats and as many dogs, 40x30."""
    for animal in ("cat", "dog"):
        for number in range(count):
            save_image(root / f"dogs_vs_cats/train/{animal}.{number}.jpg")
    return root / "dogs_vs_cats"


def cub(root: Path, scale: float = 1.0) -> None:
    """Two classes, one test and one training image each, metadata for 80x60 originals, images at `scale`."""
    base, rows = root / "cub/CUB_200_2011", {"train": [], "test": []}
    names = [f"{c}/{c[4:]}_{n}.jpg" for c in ("001.Auk", "002.Jay") for n in (0, 1)]
    for number, name in enumerate(names):
        save_image(base / "images" / name, size=(round(80 * scale), round(60 * scale)))
        split = "train" if number % 2 else "test"
        rows[split].append((name, number // 2, (80, 60), [(8, 6, 48, 36)]))
    for split, entries in rows.items():
        absent = ("200.Wren/absent.jpg", 199, (10, 10), [(0, 0, 5, 5)])
        wsol(root / f"wsol_metadata/metadata/CUB/{split}", [absent, *entries[::-1]])
    write_lines(base / "images.txt", [f"{i + 1} {name}" for i, name in enumerate(names)])
    write_lines(base / "train_test_split.txt", [f"{i + 1} {i % 2}" for i in range(4)])
    write_lines(base / "classes.txt", ["1 001.Auk", "2 002.Jay"])


def tiny_imagenet(root: Path) -> None:
    """Two images of two classes with inclusive boxes."""
    base = root / "tiny_imagenet/tiny-imagenet-200"
    write_lines(base / "wnids.txt", ["n02", "n01"])
    write_lines(base / "words.txt", ["n01\tcrane, bird", "n02\tcrane"])
    write_lines(base / "val/val_annotations.txt", ["val_0.JPEG\tn02\t0\t32\t44\t62", "val_1.JPEG\tn01\t3\t3\t63\t63"])
    for number in range(2):
        save_image(base / f"val/images/val_{number}.JPEG", size=(64, 64))


def openimages(root: Path) -> None:
    """One test image with two instances and an ignore area, masks at half size; one without ignore area."""
    folder, base = root / "wsol_metadata/metadata/OpenImages/test", root / "openimages30k"
    first, second = "test/0a/one.jpg", "test/0b/two.jpg"
    write_lines(folder / "image_ids.txt", [first, second])
    write_lines(folder / "class_labels.txt", [f"{first},0", f"{second},1"])
    lines = [f"{first},test/0a/m1.png,test/0a/i.png", f"{first},test/0a/m2.png,", f"{second},test/0b/m.png,"]
    write_lines(folder / "localization.txt", lines)
    for image in (first, second):
        save_image(base / image, size=(40, 40))
    planes = {name: np.zeros((20, 20), np.uint8) for name in ("0a/m1", "0a/m2", "0a/i", "0b/m")}
    planes["0a/m1"][:10], planes["0a/m2"][:, :10], planes["0a/i"][:, 5:] = 255, 255, 255
    for name, plane in planes.items():
        save_image(base / f"test/{name}.png", plane)


def oxford_pets(root: Path) -> None:
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


def svhn(root: Path) -> np.ndarray:
    """Three digits labelled 10 (= zero), 1, 9; returns the images `(n, h, w, c)`."""
    images = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        path = root / f"svhn/{split}_32x32.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]], np.uint8)})
    return images
