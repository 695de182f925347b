"""The WSOL benchmark's metadata format, on written files and — where prepared — on the real ones."""

import dataset_trees as trees
import numpy as np
import pytest

from repro.data.wsol_metadata import MetadataError, read_wsol_metadata
from repro.project import data_root

REAL = data_root() / "wsol_metadata" / "metadata"


@pytest.fixture
def split(tmp_path):
    folder = tmp_path / "ILSVRC/test"
    rows = [("b.jpg", 7, (50, 40), [(0, 0, 49, 39), (5, 6, 7, 8)]), ("a.jpg", 3, (100, 20), [(10, 2, 30, 12)])]
    trees.wsol(folder, rows)
    return folder


def test_rows_are_aligned_with_ids(split):
    lines = (split / "localization.txt").read_text().splitlines()
    trees.write_lines(split / "localization.txt", [lines[0], lines[2], lines[1]])
    metadata = read_wsol_metadata(split)
    assert metadata.ids == ["b.jpg", "a.jpg"] and metadata.labels.tolist() == [7, 3]
    assert metadata.sizes.tolist() == [[50, 40], [100, 20]]
    assert [boxes.tolist() for boxes in metadata.boxes] == [[[0, 0, 49, 39], [5, 6, 7, 8]], [[10, 2, 30, 12]]]
    assert metadata.half_open_boxes(0).tolist() == [[0, 0, 50, 40], [5, 6, 8, 9]]
    assert metadata.benchmark_boxes()[1].tolist() == [[22, 22, 67, 134]]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("class_labels.txt", "b.jpg", "1 fields, expected 2"),
        ("class_labels.txt", "b.jpg,seven", "seven"),
        ("class_labels.txt", "c.jpg,1", "c.jpg"),
        ("localization.txt", "b.jpg,9,0,3,3", "ends before"),
        ("image_sizes.txt", "a.jpg,1,1", "1 images, image_ids.txt has 2"),
    ],
)
def test_malformed_lines_are_located(split, file, line, message):
    lines = (split / file).read_text().splitlines()
    trees.write_lines(split / file, [line, *lines[1:]])
    with pytest.raises(MetadataError, match=message) as caught:
        read_wsol_metadata(split)
    assert file in str(caught.value)


def test_missing_file_says_how_to_get_it(split):
    (split / "image_sizes.txt").unlink()
    with pytest.raises(MetadataError, match="repro data prepare wsol_metadata"):
        read_wsol_metadata(split)


@pytest.mark.skipif(not REAL.is_dir(), reason="REPRO_DATA holds no wsol_metadata")
@pytest.mark.parametrize(
    ("split", "images", "boxes"),
    [
        ("CUB/train", 5994, 5994), ("CUB/val", 1000, 1000), ("CUB/test", 5794, 5794),
        ("ILSVRC/val", 10_000, 18_532), ("ILSVRC/test", 50_000, 80_477),
    ],
)  # fmt: skip
def test_real_boxes_lie_in_their_images(split, images, boxes):
    metadata = read_wsol_metadata(REAL / split)
    assert len(metadata.ids) == images and sum(map(len, metadata.boxes)) == boxes
    assert min(map(len, metadata.boxes)) >= 1
    right = np.array([metadata.half_open_boxes(i)[:, 2:].max(0) for i in range(images)])
    assert (right <= metadata.sizes).all()


@pytest.mark.skipif(not REAL.is_dir(), reason="REPRO_DATA holds no wsol_metadata")
def test_real_openimages_masks():
    metadata = read_wsol_metadata(REAL / "OpenImages/test")
    assert len(metadata.ids) == 5000 and sum(len(entry.masks) for entry in metadata.masks) == 7632
    assert metadata.sizes is None and all(entry.ignore for entry in metadata.masks)
    assert read_wsol_metadata(REAL / "OpenImages/train").masks is None
