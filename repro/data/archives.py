"""Unpacking what others packed: plain files and folders, inside the target, whole, and no more than was announced.

One rule for tar, zip and folders alike, stricter than the library's data filter for tars, which follows links inside
the archive, strips leading slashes and knows no limit of size.
"""

import bz2
import errno
import gzip
import hashlib
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol, runtime_checkable

from repro.project import UserError

Progress = Callable[[str, int, int], None]
"""`(what, bytes done, bytes in all)`, called after every file."""

_CHUNK = 1 << 20
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_ZIPS = (".zip", ".whl")
_DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open, b"BZh": bz2.open}
# What the libraries raise on damaged or unsupported archives, besides OSError.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
    ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError, IndexError,
)  # fmt: skip
_ODD_NAMES = (None, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class UnsafeArchiveError(UserError):
    """An archive could write outside its folder, is larger than announced, or holds what is no plain file."""


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


Members = Iterator[tuple[str, int, Readable | None]]
"""`(name, announced size, content)`; the content of a folder is None."""


def is_archive(name: str) -> bool:
    """Whether `unpack` knows this kind of file (tar, compressed tar, zip)."""
    return name.endswith((*_TARS, *_ZIPS))


def unpack(
    archive: Path,
    target: Path,
    at_most: tuple[int, int],
    only: str = "*",
    strip: int = 0,
    progress: Progress | None = None,
) -> list[FileRecord]:
    """Unpack a tar, zip or folder below the folder `target`.

    Args:
        archive: tar (plain, gz, xz, bz2), zip or wheel; or a folder, whose files are copied.
        target: receives the files. Some may have been written when an error is raised: throw it away then.
        at_most: files and bytes that it may hold.
        only: glob; members that do not match are left out.
        strip: leading folders of the members' names to drop (packed trees carry the name of their folder).
        progress: told after every file.

    Returns:
        path (relative to `target`), size and SHA-256 of every file written.

    Raises:
        UnsafeArchiveError: a path is absolute, climbs with `..` or has characters that no data set needs; a member is
            a link or device; there is more than `at_most`.
        DamagedArchiveError: it is truncated, damaged, encrypted, compressed in an unknown way, or names a file twice.
        OSError: reading or writing fails, e.g. because the disk is full.
    """
    records: dict[str, FileRecord] = {}
    total = 0
    try:
        with _opened(archive, at_most) as (members, done, size):
            for name, announced, stream in members:
                relative = _safe_path(name, archive, 0 if archive.is_dir() else strip)
                if stream is None or not relative or not fnmatch(relative, only):
                    continue
                if relative in records:
                    raise DamagedArchiveError(f"{archive.name} holds {relative!r} twice; fetch it again")
                total += announced
                if len(records) >= at_most[0] or total > at_most[1]:
                    raise _too_large(archive.name, at_most)
                records[relative] = write_stream(stream, target, relative)
                if records[relative].size != announced:
                    raise DamagedArchiveError(f"{archive.name}: {relative} ends early; fetch it again")
                if progress is not None:
                    progress(archive.name, done(), size)
    except UserError:
        raise
    except OSError as error:
        if error.errno not in _ODD_NAMES:
            raise
        raise DamagedArchiveError(f"{archive.name} is damaged: {error}; fetch it again") from error
    except _DAMAGE as error:
        raise DamagedArchiveError(f"{archive.name} is damaged or encrypted: {error}; fetch it again") from error
    return list(records.values())


def write_stream(stream: Readable, target: Path, relative: str) -> FileRecord:
    """Copy `stream` to `target/relative`, hashing on the way.

    Raises:
        FileExistsError: the file is there.
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


def _safe_path(name: str, archive: Path, strip: int) -> str:
    """The member's path, if it stays inside the target whatever the platform makes of it; empty if stripped away."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0]:
        raise UnsafeArchiveError(f"{archive.name} holds {name[:200]!r}, which leads outside its folder: refused")
    odd = any(letter < " " or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in name)
    if odd or len(name.encode("utf-8", "replace")) > 1000 or any(len(part.encode()) > 255 for part in path.parts):
        raise UnsafeArchiveError(f"{archive.name} holds a name that is no file's of a data set: {name[:200]!r}")
    return "/".join(path.parts[strip:])


def _too_large(name: str, at_most: tuple[int, int]) -> UnsafeArchiveError:
    return UnsafeArchiveError(f"{name} holds more than the {at_most[0]:,} files or {at_most[1]:,} bytes expected")


@contextmanager
def _opened(archive: Path, at_most: tuple[int, int]) -> Iterator[tuple[Members, Callable[[], int], int]]:
    """Members of an archive or folder, how many bytes of it have been read, and how many it has."""
    if archive.is_dir():
        files = [path for path in sorted(archive.rglob("*")) if ".git" not in path.relative_to(archive).parts]
        yield _folder_members(archive, files), lambda: 0, 0
        return
    with archive.open("rb") as raw:
        size = archive.stat().st_size
        if archive.name.endswith(_ZIPS):
            with zipfile.ZipFile(raw) as bundle:
                yield _zip_members(bundle, archive.name, at_most), raw.tell, size
            return
        opener = next((o for magic, o in _DECOMPRESSORS.items() if raw.peek(len(magic)).startswith(magic)), None)
        # Headers, padding and long names come on top of the files themselves.
        limit = at_most[1] + 4096 * at_most[0] + _CHUNK
        bounded = _Bounded(opener(raw) if opener else raw, limit, _too_large(archive.name, at_most))
        with tarfile.open(fileobj=bounded, mode="r:") as tar:  # type: ignore[call-overload]
            yield _tar_members(tar, bounded, archive.name), raw.tell, size


def _folder_members(folder: Path, files: list[Path]) -> Members:
    for path in files:
        if path.is_symlink():
            raise UnsafeArchiveError(f"{path} is a link: refused")
        if path.is_file():
            with path.open("rb") as stream:
                yield path.relative_to(folder).as_posix(), path.stat().st_size, stream


def _zip_members(bundle: zipfile.ZipFile, name: str, at_most: tuple[int, int]) -> Members:
    if sum(info.file_size for info in bundle.infolist()) > at_most[1]:
        raise _too_large(name, at_most)
    for info in bundle.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeArchiveError(f"{name} holds {info.filename!r}, a link or device: refused")
        if info.filename != info.orig_filename or (info.is_dir() and info.file_size):
            raise DamagedArchiveError(f"{name} holds a damaged name, {info.orig_filename[:200]!r}; fetch it again")
        if info.is_dir():
            yield info.filename, 0, None
            continue
        with bundle.open(info) as stream:
            yield info.filename, info.file_size, stream


def _tar_members(tar: tarfile.TarFile, bounded: "_Bounded", name: str) -> Members:
    """The members, then a look at the end: the library takes a damaged header for the end of the archive."""
    for member in tar:
        if not (member.isreg() or member.isdir()):
            raise UnsafeArchiveError(f"{name} holds {member.name!r}, a link or device: refused")
        yield member.name, member.size, tar.extractfile(member)
    if len(bounded.last) != tarfile.BLOCKSIZE or any(bounded.last):
        raise DamagedArchiveError(f"{name} is damaged: it breaks off after {len(tar.getmembers())} members")
    while rest := bounded.read(_CHUNK):
        if any(rest):
            raise DamagedArchiveError(f"{name} is damaged: there is content after its end mark")


class _Bounded:
    """What the tar library reads from: stops past `limit` bytes, and keeps what was read last."""

    def __init__(self, stream: Any, limit: int, error: UserError) -> None:
        self._stream, self._limit, self._error = stream, limit, error
        self.last = b""

    def read(self, size: int) -> bytes:
        self.last = self._stream.read(min(size, self._limit - self._stream.tell() + 1))
        if self._stream.tell() > self._limit:
            raise self._error
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if position > self._limit:
            raise self._error
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()
