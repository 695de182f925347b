"""Real data where `REPRO_DATA` has it: published counts, boxes inside the image, disjoint splits."""

import pytest

from repro.data import check, load_dataset
from repro.project import data_root


def real(name: str) -> str:
    """The name, or a visible skip where the set is not prepared."""
    if not check(name, hashes=False).ok:
        pytest.skip(f"{data_root()} holds no complete {name!r}")
    return name


@pytest.mark.parametrize(
    ("name", "split", "classes", "side"),
    [
        ("mnist", "test", 10, 28), ("fashion_mnist", "test", 10, 28), ("cifar10_jpg", "test", 10, 32),
        ("tiny_imagenet", "test", 200, 64), ("imagenet_sample", "test", 1000, 224),
        ("dogs_vs_cats", "test", 2, 224), ("cub", "test", 50, 224), ("cub", "train", 50, 224),
    ],
)  # fmt: skip
def test_twenty_images_of_each_set(name, split, classes, side):
    images = load_dataset(real(name), split, limit=20)
    assert images.images.shape == (20, 3, side, side) and len(images.classes) in (classes, 4 * classes)
    assert len(set(images.ids)) == 20 and not images.skipped
    assert images.images.float().flatten(1).std(1).min() > 2
    for boxes in images.boxes or []:
        assert len(boxes) == 1 and (boxes[:, :2] < boxes[:, 2:]).all()
        assert boxes.min() >= 0 and boxes.max() <= side


def test_garment_scenes_have_tight_boxes():
    real("garment_scenes")
    train, test = (load_dataset("garment_scenes", split, limit=20) for split in ("train", "test"))
    assert train.manifest != test.manifest
    for images in (train, test):
        for mask, boxes in zip(images.masks, images.boxes, strict=True):
            ys, xs = mask.nonzero(as_tuple=True)
            assert boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
            assert 0.01 < mask.float().mean() < 0.6
