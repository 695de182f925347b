"""Sets with boxes or masks: Tiny-ImageNet, CUB-200-2011, ILSVRC, OpenImages30k, Oxford-IIIT Pet.

Boxes were drawn on the stored pixels, so EXIF orientation is not applied here.
"""

from pathlib import Path

import numpy as np

from repro.data.images import UnreadableImageError, read_image
from repro.data.listing import DamagedFileError, Listing, Sample, choose_split
from repro.data.readers.folders import imagenet, imagenet_classes, read_mask
from repro.data.wsol_metadata import MaskFiles, WsolMetadata, image_scale, read_wsol_metadata


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
    classes = [line.split(" ", 1)[1] for line in _lines(folder / "CUB_200_2011/classes.txt")]
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
    rows = [line.split() for line in _lines(folder / f"annotations/{names}.txt") if not line.startswith("#")]
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
    names = dict(line.split() for line in _lines(base / "images.txt"))
    flags = dict(line.split() for line in _lines(base / "train_test_split.txt"))
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


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _distinct(names: list[str], fallback: list[str]) -> list[str]:
    """Names, with the synset added where two classes share one."""
    return [name if names.count(name) == 1 else f"{name} ({key})" for name, key in zip(names, fallback, strict=True)]
