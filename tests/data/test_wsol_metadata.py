"""The WSOL benchmark's metadata format, on written files and — where prepared — on the real ones."""

import dataset_trees as trees
import numpy as np
import pytest

from repro.data import load_dataset
from repro.data.listing import DamagedFileError
from repro.data.wsol_metadata import read_wsol_metadata
from repro.project import UserError, data_root

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


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("class_labels.txt", "b.jpg", ":1: 1 fields, expected 2"),
        ("class_labels.txt", "b.jpg,seven", ":1: 'seven' is no whole number"),
        ("class_labels.txt", "b.jpg,1.7", ":1: '1.7' is no whole number"),
        ("class_labels.txt", "b.jpg,-1", ":1: a value below 0"),
        ("class_labels.txt", "c.jpg,1", ":1: image 'c.jpg' is not in"),
        ("class_labels.txt", "b.jpg,7\nb.jpg,8", ":2: a second line of the same image"),
        ("image_ids.txt", "b.jpg\nb.jpg", ":2: 'b.jpg' is listed twice"),
        ("image_ids.txt", "Sch\xf6n.jpg", "not UTF-8 text .byte 3"),
        ("localization.txt", "b.jpg,nan,0,3,3", ":1: 'nan' is no whole number"),
        ("localization.txt", "b.jpg,9999999999,0,3,3", ":1: '9999999999' is no whole number"),
        ("localization.txt", "b.jpg,9,0,3,3", ":1: a box without area"),
        ("localization.txt", "b.jpg,9,0,50,3", ":1: a box that leaves its image"),
        ("localization.txt", "b.jpg,-1,0,3,3", ":1: a box that leaves its image"),
        ("image_sizes.txt", "b.jpg,0,40", ":1: a value below 1"),
        ("image_sizes.txt", "a.jpg,1,1", "1 images, image_ids.txt has 2"),
    ],
)
def test_malformed_lines_are_located(split, file, line, message):
    lines = (split / file).read_text().splitlines()
    (split / file).write_bytes("\n".join([line, *lines[1:]]).encode("latin-1"))
    with pytest.raises(DamagedFileError, match=message) as caught:
        read_wsol_metadata(split)
    assert file in str(caught.value)


WORDS = ["nan", "inf", "1.7", "-1", "99999999999", "", "0", "1_0", "١", "test/0a/one.jpg", "\t", "a b c", "\x00"]


def mutated(content: bytes, chance) -> bytes:
    """One line repeated, taken away, in another encoding, or with another field; or one flipped bit."""
    lines = content.split(b"\n")
    place, kind = chance.randrange(len(lines)), chance.randrange(5)
    if kind == 0:
        lines.insert(place, lines[chance.randrange(len(lines))])
    elif kind == 1:
        del lines[place]
    elif kind == 2:
        lines[place] = lines[place].decode().encode(chance.choice(["utf-16", "utf-8-sig"])) + b"\xff"
    elif kind == 3:
        separator = next((mark for mark in (b",", b"\t", b" ") if mark in lines[place]), b",")
        fields = lines[place].split(separator)
        fields[chance.randrange(len(fields))] = chance.choice(WORDS).encode()
        lines[place] = separator.join(fields)
    else:
        flipped = bytearray(lines[place] or b"x")
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        lines[place] = bytes(flipped)
    return b"\n".join(lines)


@pytest.mark.faults("damaged annotation file", "refused with a sentence, or as many sound images as before")
def test_damaged_annotations(tmp_path, request, chance, injected):
    for tree in (trees.cub, trees.tiny_imagenet, trees.openimages):
        tree(tmp_path)
    before = {name: len(load_dataset(name, root=tmp_path, on_bad_image="skip")) for name in TEXTS}
    cases, refused = request.config.getoption("--fuzz-cases") // 10, 0
    for case in range(cases):
        name = list(TEXTS)[case % 3]
        path = tmp_path / chance.choice(TEXTS[name])
        original = path.read_bytes()
        path.write_bytes(mutated(original, chance))
        try:
            images = load_dataset(name, root=tmp_path, on_bad_image="skip", size=32)
            assert len(images) + len(images.skipped) == before[name] or path.name in CUB_LISTS, path.read_bytes()
            for boxes in images.boxes or []:
                assert (boxes[:, :2] < boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= 32
        except UserError as error:
            refused += 1
            assert len(str(error)) < 2000
        path.write_bytes(original)
    assert refused > cases / 3
    injected(cases)


CUB_LISTS = ("images.txt", "train_test_split.txt", "classes.txt")
TEXTS = {
    "cub": [f"wsol_metadata/metadata/CUB/test/{f}.txt" for f in ("image_ids", "class_labels", "localization")]
    + ["wsol_metadata/metadata/CUB/test/image_sizes.txt", *(f"cub/CUB_200_2011/{f}" for f in CUB_LISTS)],
    "tiny_imagenet": [f"tiny_imagenet/tiny-imagenet-200/{f}.txt" for f in ("wnids", "words", "val/val_annotations")],
    "openimages30k": [
        f"wsol_metadata/metadata/OpenImages/test/{f}.txt" for f in ("image_ids", "class_labels", "localization")
    ],
}  # fmt: skip


def test_missing_file_says_how_to_get_it(split):
    (split / "image_sizes.txt").unlink()
    with pytest.raises(DamagedFileError, match="repro data prepare wsol_metadata"):
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
