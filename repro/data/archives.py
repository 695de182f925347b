"""Safe unpacking: plain files and folders only, inside the target, whole or not at all."""

import hashlib
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol, runtime_checkable

from repro.errors import UserError

Progress = Callable[[str, int, int], None]
"""`(what, bytes done, bytes in all)`, called after every file."""

_CHUNK = 1 << 20
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


class UnsafeArchiveError(UserError):
    """An archive holds a member that could write outside its folder or is not a plain file."""


class DamagedArchiveError(UserError):
    """An archive cannot be read to its end."""


@runtime_checkable
class Readable(Protocol):
    """A byte stream; tar members are read through a class of their own."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, none at the end."""
        ...


class FileRecord(NamedTuple):
    """One line of a data folder's `MANIFEST.tsv`."""

    path: str
    size: int
    sha256: str


def is_archive(name: str) -> bool:
    """Whether `unpack` knows this kind of file (tar, compressed tar, zip)."""
    return name.endswith((*_TAR_SUFFIXES, ".zip"))


def unpack(archive: Path, target: Path, only: str = "*", progress: Progress | None = None) -> list[FileRecord]:
    """Unpack tar or zip `archive` below the folder `target`; members not matching the glob `only` are left out.

    Returns:
        path (relative to `target`), size and SHA-256 of every file written.

    Raises:
        UnsafeArchiveError: a member's path is absolute or climbs with `..`, or it is a link or a device. Files
            before it may have been written: unpack into a folder that is thrown away on failure.
        DamagedArchiveError: the archive is truncated or not an archive.
        OSError: reading or writing fails, e.g. because the disk is full.
    """
    open_members = _zip_members if archive.name.endswith(".zip") else _tar_members
    size, records = archive.stat().st_size, []
    try:
        with archive.open("rb") as raw, open_members(raw, archive) as members:
            for name, stream in members:
                relative = _safe_path(name, archive)
                if stream is None or not fnmatch(str(relative), only):
                    continue
                records.append(write_stream(stream, target, str(relative)))
                if progress is not None:
                    progress(archive.name, raw.tell(), size)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DamagedArchiveError(f"{archive.name} is damaged: {error}; fetch it again") from error
    return records


def write_stream(stream: Readable, target: Path, relative: str) -> FileRecord:
    """Copy `stream` to `target/relative`, hashing on the way.

    Raises:
        FileExistsError: the file was already written (an archive that names a member twice).
    """
    destination = target / relative
    destination.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with destination.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return FileRecord(relative, size, digest.hexdigest())


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    """The member's path, if it stays inside the target whatever the platform makes of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name.split("/")[0]:
        raise UnsafeArchiveError(f"{archive.name} holds {name!r}, which leads outside its folder: refused")
    return path


Members = Iterator[tuple[str, Readable | None]]
"""`(name, content)`; the content of a folder is None."""


@contextmanager
def _tar_members(raw: IO[bytes], archive: Path) -> Iterator[Members]:
    def members() -> Members:
        for member in tar:
            if not (member.isreg() or member.isdir()):
                raise UnsafeArchiveError(f"{archive.name} holds {member.name!r}, a link or device: refused")
            yield member.name, tar.extractfile(member)

    with tarfile.open(fileobj=raw, mode="r:*") as tar:
        yield members()


@contextmanager
def _zip_members(raw: IO[bytes], archive: Path) -> Iterator[Members]:
    def members() -> Members:
        for info in bundle.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArchiveError(f"{archive.name} holds {info.filename!r}, a link or device: refused")
            if info.is_dir():
                yield info.filename, None
                continue
            with bundle.open(info) as stream:
                yield info.filename, stream

    with zipfile.ZipFile(raw) as bundle:
        yield members()
