"""Archives, checks and damage: what is wrong is said exactly, and nothing is left half done."""

import errno
import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import get_args

import dataset_trees as trees
import pytest

from repro.data import preparation
from repro.data.listing import DamagedImageError
from repro.data.load import GENERATORS, READERS, MissingDataError, data_path, load_dataset
from repro.data.preparation import (
    MANIFEST,
    DamagedArchiveError,
    PrepareError,
    UnsafeArchiveError,
    check,
    prepare,
    unpack,
)
from repro.data.registry import ENTRIES, Archive, DatasetEntry, describe
from repro.files import file_hash
from repro.vocabulary import DatasetName


def tar_of(path: Path, members: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return path


def change(monkeypatch, **fields) -> None:
    """Another registry entry of `dogs_vs_cats`."""
    monkeypatch.setitem(ENTRIES, "dogs_vs_cats", ENTRIES["dogs_vs_cats"].model_copy(update=fields))


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder holding the archive of a ten-image `dogs_vs_cats`; the registry knows its checksum."""
    folder = trees.dogs_vs_cats(tmp_path / "made", 5)
    members = {f"train/{p.name}": p.read_bytes() for p in sorted((folder / "train").iterdir())}
    (tmp_path / "archives/deep").mkdir(parents=True)
    archive = tar_of(tmp_path / "archives/deep/pets.tar", members)
    known = Archive(file="pets.tar", sha256=file_hash(archive), at_most=[10, 10**6])
    change(monkeypatch, editions={"ten images": [known]}, contents={"train/*.jpg": [10]})
    return tmp_path / "archives"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_prepare_checks_and_loads(source, root):
    seen = []
    result = prepare("dogs_vs_cats", source, root, lambda what, done, total: seen.append(done / total))
    assert result.ok and result.files == 10 and seen == sorted(seen) and len(seen) == 10
    assert [p.name for p in root.iterdir()] == ["dogs_vs_cats"]
    assert len(load_dataset("dogs_vs_cats", root=root)) == 2
    before = (root / "dogs_vs_cats" / MANIFEST).stat().st_mtime_ns
    assert prepare("dogs_vs_cats", source, root).ok
    assert (root / "dogs_vs_cats" / MANIFEST).stat().st_mtime_ns == before


@pytest.mark.faults("missing, extra and changed files of a data set", "named; a new preparation repairs them")
def test_check_names_what_is_missing_and_damaged_and_prepare_repairs_it(source, root):
    prepare("dogs_vs_cats", source, root)
    folder = root / "dogs_vs_cats/train"
    (folder / "cat.1.jpg").unlink()
    (folder / "cat.2.jpg").write_bytes(b"short")
    content = bytearray((folder / "dog.3.jpg").read_bytes())
    content[-10] ^= 1
    (folder / "dog.3.jpg").write_bytes(content)
    result = check("dogs_vs_cats", root)
    assert not result.ok
    assert any("9 files, expected 10" in text for text in result.missing)
    assert "train/cat.1.jpg" in result.missing
    assert [text.split(":")[0] for text in result.damaged] == ["train/cat.2.jpg", "train/dog.3.jpg"]
    assert "cat.1.jpg" in str(result) and "cat.2.jpg" in str(result)
    assert len(check("dogs_vs_cats", root, hashes=False).damaged) == 1
    assert prepare("dogs_vs_cats", source, root).ok


@pytest.mark.faults("damaged image in a data set", "stops the run, or is skipped and counted")
def test_damaged_images_stop_the_run_or_are_counted(source, root):
    prepare("dogs_vs_cats", source, root)
    good = load_dataset("dogs_vs_cats", "train", root=root)
    for name in ("cat.1.jpg", "dog.4.jpg"):
        path = root / "dogs_vs_cats/train" / name
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DamagedImageError, match=r'(?s)2 damaged.*cat\.1\.jpg.*dog\.4\.jpg.*on_bad_image="skip"'
    ) as caught:
        load_dataset("dogs_vs_cats", "train", root=root)
    assert [bad.id for bad in caught.value.images] == ["cat.1.jpg", "dog.4.jpg"]
    skipped = load_dataset("dogs_vs_cats", "train", root=root, on_bad_image="skip")
    assert [bad.id for bad in skipped.skipped] == ["cat.1.jpg", "dog.4.jpg"]
    kept = [i for i, name in enumerate(good.ids) if name not in ("cat.1.jpg", "dog.4.jpg")]
    assert skipped.ids == [good.ids[i] for i in kept] and skipped.images.equal(good.images[kept])


@pytest.mark.faults("archive with ../, absolute or drive paths", "refused before anything is written outside")
@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:/outside", "train/../../outside"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_folder_are_refused(name, kind, tmp_path):
    if kind == "tar":
        archive = tar_of(tmp_path / "evil.tar", {"fine": b"1", name: b"2"})
    else:
        archive = tmp_path / "evil.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("fine", b"1")
            bundle.writestr(name, b"2")
    with pytest.raises(UnsafeArchiveError, match="outside its folder"):
        unpack(archive, tmp_path / "in/target")
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.faults("archive with links or devices", "refused")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind, tmp_path):
    info = tarfile.TarInfo("innocent.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(UnsafeArchiveError, match=r"innocent\.jpg"):
        unpack(tar_of(tmp_path / "evil.tar", {"fine": b"1"}, info), tmp_path / "target")


@pytest.mark.faults("zip with a symbolic link", "refused")
def test_symlink_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as bundle:
        bundle.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="link"):
        unpack(tmp_path / "evil.zip", tmp_path / "target")


@pytest.mark.faults("unsafe, damaged or incomplete archive", "nothing is left behind")
def test_nothing_is_left_of_an_unsafe_damaged_or_incomplete_archive(source, root, monkeypatch):
    good = next(source.rglob("pets.tar"))
    cut = source / "cut.tar"
    cut.write_bytes(good.read_bytes()[:5000])
    cases = {
        tar_of(source / "evil.tar", {"train/cat.0.jpg": b"1", "../x": b"2"}): UnsafeArchiveError,
        tar_of(source / "twice.tar", {"train/cat.0.jpg": b"1"}): PrepareError,
        cut: DamagedArchiveError,
    }
    for archive, error in cases.items():
        change(monkeypatch, editions={"test": [Archive(file=archive.name, at_most=[10, 10**6])]})
        with pytest.raises(error):
            prepare("dogs_vs_cats", source, root)
        assert not list(root.iterdir()), archive.name


@pytest.mark.faults("disk full while preparing data", "nothing is left behind, what was there stays")
def test_full_disk_leaves_nothing_and_keeps_what_was_there(source, root, monkeypatch):
    prepare("dogs_vs_cats", source, root)
    (root / "dogs_vs_cats/train/cat.1.jpg").unlink()
    written = 0

    def write(stream, target, relative):
        nonlocal written
        written += 1
        if written > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(stream, target, relative)

    from repro.data import preparation

    real = preparation.write_stream
    monkeypatch.setattr(preparation, "write_stream", write)
    with pytest.raises(PrepareError, match="full"):
        prepare("dogs_vs_cats", source, root)
    assert [p.name for p in root.iterdir()] == ["dogs_vs_cats"]
    assert len(list((root / "dogs_vs_cats/train").iterdir())) == 9


def test_wrong_or_absent_archives_are_told_apart(source, root, monkeypatch):
    with pytest.raises(PrepareError, match="no such folder"):
        prepare("dogs_vs_cats", source / "nowhere", root)
    archive = next(source.rglob("pets.tar"))
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(PrepareError, match=r"pets\.tar is there but its checksum is wrong"):
        prepare("dogs_vs_cats", source, root)
    archive.unlink()
    with pytest.raises(PrepareError, match=r"pets\.tar is missing"):
        prepare("dogs_vs_cats", source, root)
    with pytest.raises(PrepareError, match="cannot be downloaded"):
        prepare("dogs_vs_cats", None, root)


def test_files_of_unknown_origin_are_never_removed(source, root):
    own = root / "dogs_vs_cats/train/cat.0.jpg"
    trees.save_image(own)
    with pytest.raises(PrepareError, match="move it away"):
        prepare("dogs_vs_cats", source, root)
    assert own.exists()


def test_missing_data_says_what_and_how(root):
    with pytest.raises(MissingDataError, match=r"(?s)not usable.*images\.txt.*wsol_metadata.*repro data prepare"):
        load_dataset("cub", root=root)
    with pytest.raises(MissingDataError, match="squeezenet"):
        data_path("weights", "squeezenet1_0_imagenet.safetensors", root)
    assert check("scenes", root).ok and prepare("scenes", None, root).ok


def test_download_goes_through_the_same_checks(source, root, monkeypatch):
    archive = next(source.rglob("pets.tar"))
    [known] = ENTRIES["dogs_vs_cats"].editions["ten images"]
    known = known.model_copy(update={"url": archive.as_uri()})
    change(monkeypatch, editions={"web": [known]})
    assert prepare("dogs_vs_cats", None, root).ok
    change(monkeypatch, editions={"web": [known.model_copy(update={"sha256": "0" * 64})]})
    with pytest.raises(PrepareError, match="damaged"):
        prepare("dogs_vs_cats", None, root.with_name("other"))
    assert not list(root.with_name("other").iterdir())


def test_descriptions_cover_every_entry():
    rows = describe()
    assert [row["name"] for row in rows] == list(ENTRIES)
    assert all(row["licence"] and row["title"] and row["homepage"] for row in rows)
    assert preparation.check("font_digits").ok
    assert set(get_args(DatasetName)) == {name for name, entry in ENTRIES.items() if entry.splits}
    assert set(get_args(DatasetName)) == set(READERS) | set(GENERATORS)
    for entry in ENTRIES.values():
        assert set(entry.needs) <= set(ENTRIES)
        for archive in (archive for archives in entry.editions.values() for archive in archives):
            assert preparation.is_archive(archive.file) == (archive.at_most is not None), archive.file


def test_a_misspelt_field_of_the_registry_is_refused():
    with pytest.raises(ValueError, match="licens"):
        DatasetEntry(name="x", title="x", homepage="x", licens="MIT")
