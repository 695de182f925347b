"""The cache of decoded images: same content as without it, noticed changes, nothing half written."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dataset_trees as trees
import numpy as np
import pytest
import torch

from repro.data import listing, load_dataset, readers
from repro.data.images import UnreadableImageError
from repro.files import file_hash
from repro.project import UserError


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
    assert replace(second, stored_manifest=None).manifest == second.manifest
    assert second.subset([1, 0]).manifest == replace(second, stored_manifest=None).subset([1, 0]).manifest
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
    boxes = root / "wsol_metadata/metadata/CUB/test/localization.txt"
    boxes.write_text(boxes.read_text().replace("8,6,48,36", "8,6,40,36"))
    assert load(root).boxes[0].tolist() == [[6, 6, 32, 38]]


@pytest.mark.faults("flipped bits and truncation in the image cache", "noticed; the cache is made anew")
def test_damage_of_the_cache_is_noticed_and_repaired(root, moments, injected):
    first, rng = load(root), np.random.default_rng(0)
    pixels = first.images.clone()  # those of the set are mapped from the file
    names = ("images.npy", "index.json")
    for trial in range(3 * moments):
        path = next(root.glob(".cache/*/index.json")).with_name(names[trial % 2])
        content = bytearray(path.read_bytes())
        if trial % 5 == 4:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        again = load(root)
        assert torch.equal(again.images, pixels) and again.manifest == first.manifest
        assert [box.tolist() for box in again.boxes] == [box.tolist() for box in first.boxes]
    assert len([path for path in (root / ".cache").iterdir() if path.is_dir()]) == 1
    injected(3 * moments)


def test_processes_of_one_job_check_the_cache_once(root, monkeypatch):
    load(root)
    hashed = []
    monkeypatch.setattr(listing, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    for job, expected in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        load(root)
        assert len(hashed) == expected
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    load(root)
    assert len(hashed) == 3


@pytest.mark.faults("disk full or crash while writing the image cache", "no cache is left, the next load succeeds")
@pytest.mark.parametrize("moment", ["allocate", "decode", "index"])
def test_full_disk_or_crash_leaves_no_cache(root, monkeypatch, moment):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if moment == "allocate":
            patch.setattr(listing.os, "posix_fallocate", full)
        elif moment == "decode":
            patch.setattr(listing, "_place", full)
        else:
            patch.setattr(listing, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            load(root)
    assert not [path for path in (root / ".cache").iterdir() if path.is_dir()]
    assert len(load(root)) == 2


@pytest.mark.faults("several processes want one image cache", "one decodes, the others wait, all use its result")
def test_only_one_of_several_decodes(root, monkeypatch):
    seen = count_reads(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(lambda _: load(root).manifest, range(4)))
    assert len(seen) == 2 and len(set(manifests)) == 1


@pytest.mark.faults("image cache on a file system without locks", "a sentence")
def test_no_locks(root, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(listing.FileLock, "acquire", refused)
    with pytest.raises(UserError, match="file system without locks"):
        load(root)


def test_all_images_unreadable(root, monkeypatch):

    def unreadable(*_: object, **__: object) -> None:
        raise UnreadableImageError("has no bytes")

    monkeypatch.setattr(readers, "read_image", unreadable)
    nothing = load(root)
    assert len(nothing) == 0 and len(nothing.skipped) == 2 and nothing.images.shape == (0, 3, 64, 64)
