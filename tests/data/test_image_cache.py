"""The cache of decoded images: same content as without it, noticed changes, nothing half written."""

import errno
import os

import dataset_trees as trees
import numpy as np
import pytest

from repro.data import listing, load_dataset, readers
from repro.data.images import UnreadableImageError


@pytest.fixture
def root(tmp_path):
    trees.cub(tmp_path, 1.0)
    return tmp_path


def load(root, **options):
    return load_dataset("cub", root=root, on_bad_image="skip", size=64, **options)


def count_reads(monkeypatch):

    seen = []
    real = readers.read_image
    monkeypatch.setattr(readers, "read_image", lambda path, upright: seen.append(path) or real(path, upright))
    return seen


def test_second_load_reads_no_image_and_is_equal(root, monkeypatch):
    seen = count_reads(monkeypatch)
    first = load(root)
    assert len(seen) == 2
    second = load(root)
    assert len(seen) == 2 and second.manifest == first.manifest and second.ids == first.ids
    assert isinstance(np.load(next(root.glob(".cache/*/images.npy")), mmap_mode="r"), np.memmap)
    other = load(root, fit="crop")
    assert len(seen) == 4 and other.manifest != first.manifest


def test_changed_and_returning_files_are_noticed(root):
    first = load(root)
    path = root / "cub/CUB_200_2011/images/001.Auk/Auk_0.jpg"
    content = path.read_bytes()
    path.unlink()
    without = load(root)
    assert len(without) == 1 and without.skipped[0].reason == "file is missing"
    assert load(root).skipped == without.skipped  # from the cache
    path.write_bytes(content)
    assert load(root).manifest == first.manifest


@pytest.mark.faults("disk full or crash while writing the image cache", "no cache is left, the next load succeeds")
@pytest.mark.parametrize("moment", ["allocate", "decode", "index"])
def test_full_disk_or_crash_leaves_no_cache(root, monkeypatch, moment):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if moment == "allocate":
            patch.setattr(listing.os, "posix_fallocate", full)
        elif moment == "decode":
            patch.setattr(listing.Arrays, "store", full)
        else:
            patch.setattr(listing, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            load(root)
    assert not list((root / ".cache").iterdir())
    assert len(load(root)) == 2


@pytest.mark.faults("two processes fill one image cache", "one result, both use it")
def test_two_processes_filling_at_once_share_one_result(root, monkeypatch):
    real = listing.write_json

    def slow(path, value):
        real(path, value)
        monkeypatch.setattr(listing, "write_json", real)
        load(root)  # another process finishes first

    monkeypatch.setattr(listing, "write_json", slow)
    assert len(load(root)) == 2 and len(list((root / ".cache").iterdir())) == 1


def test_all_images_unreadable(root, monkeypatch):

    def unreadable(*_: object, **__: object) -> None:
        raise UnreadableImageError("has no bytes")

    monkeypatch.setattr(readers, "read_image", unreadable)
    nothing = load(root)
    assert len(nothing) == 0 and len(nothing.skipped) == 2 and nothing.images.shape == (0, 3, 64, 64)
