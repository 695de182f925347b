"""The registry: every data set this project knows."""

from collections.abc import Callable
from pathlib import Path

from repro.data import entries_arrays, entries_images, readers
from repro.data.font_digits import FONT_DIGIT_COUNTS, load_font_digits
from repro.data.images import ImageSet
from repro.data.listing import load_listing
from repro.data.registry import DatasetEntry, LoadRequest
from repro.data.scenes import DEFAULT_SIZE as GARMENT_SIZE
from repro.data.scenes import GARMENT_COUNTS, SCENE_COUNTS, load_garment_scenes, load_scenes

_OWN = "rendered by this project; MIT"


def _scenes(objects: int) -> Callable[[LoadRequest], ImageSet]:
    def load(request: LoadRequest) -> ImageSet:
        split = request.split
        return load_scenes(split, request.limit, request.size or 64, request.seed, objects)

    return load


def _font_digits(request: LoadRequest) -> ImageSet:
    return load_font_digits(request.split, request.limit, request.size or 32, request.seed)


def _digits(request: LoadRequest) -> ImageSet:
    return load_listing("digits", readers.sklearn_digits(Path(), request.split), request, 8, "squash", False)


def _garments(request: LoadRequest) -> ImageSet:
    size = request.size or GARMENT_SIZE
    return load_garment_scenes(request.root, request.split, request.limit, size, request.seed)


_EMBEDDED = (
    DatasetEntry(
        name="scenes",
        title="Part-whole scenes, 8 classes, 64x64: objects differ only in a small part",
        licence=_OWN,
        homepage="repro/data/scenes.py",
        splits=SCENE_COUNTS,
        loader=_scenes(1),
    ),
    DatasetEntry(
        name="scenes_two_objects",
        title="Part-whole scenes with two objects of different classes in each image",
        licence=_OWN,
        homepage="repro/data/scenes.py",
        splits=SCENE_COUNTS,
        loader=_scenes(2),
    ),
    DatasetEntry(
        name="digits",
        title="scikit-learn's handwritten digits (UCI optical recognition), 8x8",
        licence="CC BY 4.0",
        homepage="https://archive.ics.uci.edu/dataset/80",
        splits={"train": 1348, "test": 449},
        loader=_digits,
    ),
    DatasetEntry(
        name="font_digits",
        title="Digits rendered from DejaVu fonts with random pose and noise, 32x32",
        licence="rendered by this project; fonts under the Bitstream Vera / DejaVu licence",
        homepage="repro/data/font_digits.py",
        splits=FONT_DIGIT_COUNTS,
        loader=_font_digits,
    ),
    DatasetEntry(
        name="garment_scenes",
        title="Fashion-MNIST garments composed over photographs, exact masks and boxes, 96x96",
        licence="Fashion-MNIST MIT; photographs under their own terms (non-commercial research)",
        homepage="repro/data/scenes.py",
        splits=GARMENT_COUNTS,
        loader=_garments,
        instructions="Composed when used. Prepare fashion_mnist and imagenet_sample.",
        needs=("fashion_mnist", "imagenet_sample"),
    ),
)

ENTRIES: dict[str, DatasetEntry] = {
    entry.name: entry for entry in (*_EMBEDDED, *entries_arrays.ENTRIES, *entries_images.ENTRIES)
}
