"""Archives, checks and damage: what is wrong is said exactly, and nothing is left half done."""

import bz2
import errno
import gzip
import io
import itertools
import lzma
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import get_args

import dataset_trees as trees
import pytest

from repro.data import archives, preparation
from repro.data.archives import DamagedArchiveError, UnsafeArchiveError, is_archive, unpack
from repro.data.listing import DamagedImageError
from repro.data.load import GENERATORS, READERS, MissingDataError, data_path, load_dataset
from repro.data.preparation import MANIFEST, PrepareError, check, prepare
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
    trees.dogs_vs_cats(tmp_path / "made", 5)
    members = {f"train/{p.name}": p.read_bytes() for p in sorted((tmp_path / "made/dogs_vs_cats/train").iterdir())}
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


ROOM = (100, 10**6)


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as bundle, warnings.catch_warnings(action="ignore"):
        for name, content in members.items():
            bundle.writestr(zipfile.ZipInfo(name), content, compression)
    return path


@pytest.mark.faults("archive with ../, absolute, drive, control or endless paths", "refused, nothing outside")
@pytest.mark.parametrize(
    "name",
    ["../outside", "/outside", "a/../../outside", "..\\outside", "C:/outside", "train/../../outside", "a\toutside",
     "a\noutside", "x" * 300 + "outside", "y/" * 600 + "outside", "\x1boutside", "\udcffoutside"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_leave_the_folder_are_refused(name, kind, tmp_path):
    if kind == "zip" and "\udcff" in name:
        pytest.skip("a zip holds no such name")
    make = tar_of if kind == "tar" else zip_of
    archive = make(tmp_path / f"evil.{kind}", {"fine": b"1", name: b"2"})
    with pytest.raises(UnsafeArchiveError, match=r"outside its folder|no file's of a data set"):
        unpack(archive, tmp_path / "in/target", ROOM)
    assert not list(tmp_path.rglob("*outside*"))


@pytest.mark.faults("archive with links or devices", "refused")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, "zip", "folder"])
def test_links_and_devices_are_refused(kind, tmp_path):
    if kind == "folder":
        archive = tmp_path / "evil"
        archive.mkdir()
        (archive / "link").symlink_to("/etc/passwd")
    elif kind == "zip":
        info = zipfile.ZipInfo("link")
        info.external_attr, archive = 0o120777 << 16, tmp_path / "evil.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr(info, "/etc/passwd")
    else:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive = tar_of(tmp_path / "evil.tar", {"fine": b"1"}, info)
    with pytest.raises(UnsafeArchiveError, match="link"):
        unpack(archive, tmp_path / "target", ROOM)


def bomb(folder: Path, kind: str) -> Path:
    """A small archive that unpacks to 50 MB, or to 5,000 files, or announces more than it holds."""
    zeros = b"\0" * 50_000_000
    if kind == "zip":
        return zip_of(folder / "bomb.zip", {"zeros": zeros})
    if kind == "files":
        return zip_of(folder / "bomb.zip", {str(number): b"" for number in range(5000)})
    plain = tar_of(folder / "bomb.tar", {"zeros": zeros} if kind == "tgz" else {"fine": b"1"})
    if kind == "header":  # a name of 50 MB, which the library would read as a whole
        info = tarfile.TarInfo("long")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, len(zeros)
        plain.write_bytes(info.tobuf() + zeros + plain.read_bytes())
    (folder / "bomb.tgz").write_bytes(gzip.compress(plain.read_bytes(), 1))
    return folder / "bomb.tgz"


@pytest.mark.faults("archive that unpacks to far more than its size, {id}", "refused before it is written")
@pytest.mark.parametrize("kind", ["zip", "tgz", "files", "header"])
def test_archives_hold_no_more_than_expected(kind, tmp_path):
    archive = bomb(tmp_path, kind)
    assert archive.stat().st_size < 2_000_000
    with pytest.raises(UnsafeArchiveError, match="holds more than the 100 files or 1,000,000 bytes"):
        unpack(archive, tmp_path / "target", ROOM)
    assert sum(path.stat().st_size for path in (tmp_path / "target").rglob("*")) < 2_000_000


@pytest.mark.faults("encrypted, unknown or contradicting archive, {id}", "a sentence")
@pytest.mark.parametrize("kind", ["encrypted", "compression", "twice", "file and folder", "no archive", "no end"])
def test_archives_that_cannot_be_unpacked(kind, tmp_path):
    content = {"a.jpg": b"0123456789" * 100}
    archive = tmp_path / "evil.zip"
    if kind == "twice":
        with zipfile.ZipFile(archive, "w") as bundle, warnings.catch_warnings(action="ignore"):
            for _ in range(2):
                bundle.writestr("a.jpg", b"1")
    elif kind == "file and folder":
        zip_of(archive, {"a": b"1", "a/b": b"2"})
    elif kind == "no archive":
        archive.write_bytes(b"<html>404</html>")
    elif kind == "no end":
        archive = tar_of(tmp_path / "evil.tar", content)
        archive.write_bytes(archive.read_bytes()[:1536])
    else:
        raw = bytearray(zip_of(archive, content).read_bytes())
        for header, flag, method in ((0, 6, 8), (raw.index(b"PK\1\2"), 8, 10)):
            raw[header + (flag if kind == "encrypted" else method)] = 1 if kind == "encrypted" else 99
        archive.write_bytes(raw)
    with pytest.raises(DamagedArchiveError, match=archive.name):
        unpack(archive, tmp_path / "target", ROOM)


def damaged(content: bytes, chance) -> bytes:
    """Flipped bits, a lost or inserted or zeroed stretch, or a cut."""
    place, length, kind = chance.randrange(len(content)), chance.choice([1, 7, 512, 1024]), chance.randrange(5)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(chance.choice([1, 1, 4])):
            flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    middle = {1: b"", 2: content[place : place + length] + bytes(length), 3: bytes(length)}
    return content[:place] + (middle[kind] + content[place + length :] if kind < 4 else b"")


@pytest.mark.faults("damaged tar or zip", "a sentence; never fewer files, or others, without one")
def test_damaged_archives(tmp_path, root, monkeypatch, request, chance, injected):
    files = {f"train/{kind}.{n}.jpg": chance.randbytes(n) for kind in "ab" for n in (0, 400, 900)}
    tar = tar_of(tmp_path / "good.tar", files).read_bytes()
    goods = {"x.tar": tar, "x.tgz": gzip.compress(tar), "x.tar.xz": lzma.compress(tar), "x.tar.bz2": bz2.compress(tar)}
    goods["x.zip"] = zip_of(tmp_path / "good.zip", files).read_bytes()
    cases, refused = request.config.getoption("--fuzz-cases") // 5, 0
    for case in range(cases):
        name = list(goods)[case % len(goods)]
        known = Archive(file=name, at_most=[6, 3000])
        change(monkeypatch, editions={"one": [known]}, contents={"train/*.jpg": [6]})
        (tmp_path / "in" / str(case)).mkdir(parents=True)
        (tmp_path / "in" / str(case) / name).write_bytes(damaged(goods[name], chance))
        try:
            assert prepare("dogs_vs_cats", tmp_path / "in" / str(case), root).ok
            found = {path: (root / "dogs_vs_cats" / path).read_bytes() for path in files}
            # A plain tar has no checksum of its contents; the registry's is over the whole file.
            assert found == files or (
                name == "x.tar" and list(map(len, found.values())) == list(map(len, files.values()))
            )
            shutil.rmtree(root / "dogs_vs_cats")
        except (UnsafeArchiveError, DamagedArchiveError, PrepareError) as error:
            assert len(str(error)) < 1000
            refused += 1
        assert not list(root.iterdir())
    assert refused > cases / 2
    injected(cases)


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

    real = archives.write_stream
    monkeypatch.setattr(archives, "write_stream", write)
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


def test_what_a_set_needs_is_prepared_first(source, root, monkeypatch):
    monkeypatch.setitem(ENTRIES, "mnist", ENTRIES["mnist"].model_copy(update={"needs": ["dogs_vs_cats"]}))
    with pytest.raises(PrepareError, match=r"no archives of 'mnist'"):
        prepare("mnist", source, root)
    assert check("dogs_vs_cats", root).ok
    with pytest.raises(PrepareError, match=r"(?s)'cub' needs 'wsol_metadata' first: .*tar\.xz is missing"):
        prepare("cub", source, root)


@pytest.mark.faults("damaged manifest of a data set", "named; a new preparation repairs it")
@pytest.mark.parametrize("content", [b"train/cat.0.jpg\tten\tabc\n", b"train/cat.0.jpg", b"\xff\xfe"])
def test_damaged_manifest_is_told_and_repaired(source, root, content):
    prepare("dogs_vs_cats", source, root)
    (root / "dogs_vs_cats" / MANIFEST).write_bytes(content)
    assert "MANIFEST" in check("dogs_vs_cats", root).damaged[0]
    assert prepare("dogs_vs_cats", source, root).ok and check("dogs_vs_cats", root).ok


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
        for archive in itertools.chain(*entry.editions.values()):
            assert archive.becomes or is_archive(archive.file) == (archive.at_most is not None), archive.file


def test_the_size_of_the_cache_is_known_beforehand():
    ilsvrc = ENTRIES["ilsvrc"]
    assert ilsvrc.cache_bytes("train") == 1_281_167 * 3 * 224**2 and ilsvrc.cache_bytes("train", size=256) > 251e9
    assert ENTRIES["openimages30k"].cache_bytes("test", limit=100) == 100 * 5 * 224**2
    assert ENTRIES["mnist"].cache_bytes("train") == 0


def test_a_misspelt_field_of_the_registry_is_refused():
    with pytest.raises(ValueError, match="licens"):
        DatasetEntry(name="x", title="x", homepage="x", licens="MIT")
