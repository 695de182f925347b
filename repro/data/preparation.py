"""Checking a data folder and filling it from archives: `repro data check|prepare`."""

import errno
import hashlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from repro.data.archives import FileRecord, Progress, unpack, write_stream
from repro.data.registry import ENTRIES, Archive, DatasetEntry, find_entry
from repro.files import file_hash, write_text
from repro.project import UserError, data_root

MANIFEST = "MANIFEST.tsv"


class PrepareError(UserError):
    """A data set could not be prepared; nothing was left behind."""


@dataclass(frozen=True)
class CheckResult:
    """State of one data set's folder.

    Attributes:
        missing: what is not there, a sentence each.
        damaged: what is there but wrong, a sentence each.
        files: number of files looked at.
    """

    name: str
    folder: Path
    missing: tuple[str, ...]
    damaged: tuple[str, ...]
    files: int

    @property
    def ok(self) -> bool:
        """Whether the data set can be used."""
        return not self.missing and not self.damaged

    def __str__(self) -> str:
        if self.ok:
            return f"{self.name}: complete, {self.files} files in {self.folder}"
        lines = [f"{self.name}: not usable"]
        lines += [f"  missing: {text}" for text in _shortened(self.missing)]
        lines += [f"  damaged: {text}" for text in _shortened(self.damaged)]
        return "\n".join([*lines, f"  {ENTRIES[self.name].instructions}"])


def check(name: str, root: Path | None = None, hashes: bool = True) -> CheckResult:
    """Compare the folder of data set `name` below `root` (default: `data_root()`) with its entry.

    Counts are always checked. A folder made by `prepare` also has a manifest: each file in it is compared by
    size and, unless `hashes` is False, by SHA-256.

    Raises:
        UnknownDatasetError: no such data set.
    """
    entry, root = find_entry(name), root or data_root()
    missing, damaged, files = _check_folder(entry, root / name, hashes)
    for needed in entry.needs:
        below = check(needed, root, hashes=False)
        if not below.ok:
            missing.append(f"data set {needed!r} (run: repro data prepare {needed})")
    return CheckResult(name, root / name, tuple(missing), tuple(damaged), files)


def prepare(
    name: str, source: Path | None = None, root: Path | None = None, progress: Progress | None = None
) -> CheckResult:
    """Fill the folder of data set `name` below `root` from archives found anywhere under the folder `source`.

    Without `source` the archives are downloaded where the publisher allows that without a form. Archives are
    verified against their checksum and unpacked into a temporary folder beside the target, which is renamed once its
    contents are complete: the data set is there as a whole or not at all. Already complete: nothing is done. Data sets
    that this one needs are prepared first.

    Raises:
        UnknownDatasetError: no such data set.
        PrepareError: archives are missing or damaged, the contents are incomplete, the disk is full, or the
            target holds files that this function did not put there.
        UnsafeArchiveError, DamagedArchiveError: see `archives.unpack`.
    """
    entry, root = find_entry(name), root or data_root()
    for needed in entry.needs:
        if not check(needed, root, hashes=False).ok:
            try:
                prepare(needed, source, root, progress)
            except PrepareError as error:
                raise PrepareError(f"{name!r} needs {needed!r} first: {error}") from error
    present = check(name, root)
    if present.ok or not entry.editions:
        return present
    target = root / name
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise PrepareError(f"{target} holds files of unknown origin and is incomplete: move it away first\n{present}")
    with _staging(root, name) as staging:
        _fill(entry, source, staging, progress)
        missing, damaged, _ = _check_folder(entry, staging, hashes=False)
        if missing or damaged:
            raise PrepareError(f"the archives of {name!r} are incomplete: " + "; ".join(missing + damaged))
        if target.exists():
            shutil.rmtree(target)
        staging.chmod(0o755)
        staging.rename(target)
    return check(name, root, hashes=False)


def read_manifest(folder: Path) -> list[FileRecord]:
    """The files `prepare` wrote into `folder`; empty where it was filled by hand.

    Raises:
        PrepareError: the manifest itself is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return []
    try:
        rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        return [FileRecord(name, int(size), digest) for name, size, digest in rows]
    except ValueError as error:
        raise PrepareError(f"{MANIFEST}: {error}; remove the folder and prepare it again") from error


def _check_folder(entry: DatasetEntry, folder: Path, hashes: bool) -> tuple[list[str], list[str], int]:
    """What is missing, what is damaged, how many files were looked at."""
    missing, damaged, files = [], [], 0
    expected: dict[str, tuple[list[int] | range, str]]
    expected = {glob: (counts, " or ".join(f"{n:,}" for n in counts)) for glob, counts in entry.contents.items()}
    expected |= {glob: (range(least, sys.maxsize), f"at least {least:,}") for glob, least in entry.at_least.items()}
    for pattern, (counts, words) in expected.items():
        found = sum(1 for _ in folder.glob(pattern))
        files += found
        if found not in counts:
            missing.append(f"{pattern}: {found:,} files, expected {words}")
    records = []
    try:
        records = read_manifest(folder)
    except PrepareError as error:
        damaged.append(str(error))
    for record in records:
        path = folder / record.path
        if not path.is_file():
            missing.append(record.path)
        elif path.stat().st_size != record.size:
            damaged.append(f"{record.path}: {path.stat().st_size} bytes, expected {record.size}")
        elif hashes and file_hash(path) != record.sha256:
            damaged.append(f"{record.path}: content changed since it was prepared (SHA-256 differs)")
    return missing, damaged, files


@contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """A temporary folder beside the target, removed unless it was renamed; a full disk is told in words."""
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}.", suffix=".partial"))
    try:
        yield folder
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PrepareError(f"the disk of {root} is full; {name!r} was not prepared, nothing was left behind") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fill(entry: DatasetEntry, source: Path | None, staging: Path, progress: Progress | None) -> None:
    """Put the contents of the first complete edition into `staging`, with a manifest."""
    records: list[FileRecord] = []
    paths = _download(entry, staging / ".download", progress) if source is None else _find_archives(entry, source)
    for archive, path in paths:
        written = _place(archive, path, staging / archive.into, progress)
        prefix = f"{archive.into}/" if archive.into else ""
        records += [record._replace(path=prefix + record.path) for record in written]
    shutil.rmtree(staging / ".download", ignore_errors=True)
    write_text(staging / MANIFEST, "".join(f"{r.path}\t{r.size}\t{r.sha256}\n" for r in records))
    known = {archive.file: archive.sha256 for archives in entry.editions.values() for archive in archives}
    for record in records:
        if known.get(record.path) not in (None, record.sha256):
            raise PrepareError(f"{record.path} of {entry.name!r} came out with another content than is registered")


def _place(archive: Archive, path: Path, target: Path, progress: Progress | None) -> list[FileRecord]:
    """Unpack, convert or copy one archive into `target`."""
    if archive.at_most is not None:
        files, size = archive.at_most
        return unpack(path, target, (files, size), archive.only, 1 if archive.tree else 0, progress)
    if archive.becomes is not None:
        from repro.data.origins import CONVERTERS

        converted = CONVERTERS[archive.becomes](path.read_bytes())
        return [write_stream(io.BytesIO(converted), target, archive.becomes)]
    with path.open("rb") as stream:
        return [write_stream(stream, target, archive.file)]


def _find_archives(entry: DatasetEntry, source: Path) -> list[tuple[Archive, Path]]:
    """The archives of the first edition that is complete and undamaged under `source`."""
    if not source.is_dir():
        raise PrepareError(f"--from {source}: no such folder")
    problems = []
    for title, archives in entry.editions.items():
        found, lacking = _match(archives, source)
        if not lacking:
            return found
        problems.append(f"{title}: " + "; ".join(lacking))
    listing = "\n  ".join(problems)
    raise PrepareError(f"no archives of {entry.name!r} under {source}:\n  {listing}\n{entry.instructions}")


def _match(archives: list[Archive], source: Path) -> tuple[list[tuple[Archive, Path]], list[str]]:
    found, lacking = [], []
    for archive in archives:
        candidates = sorted(path for path in source.rglob(archive.file) if path.is_file())
        if archive.tree is not None:
            candidates += sorted(path for path in source.rglob(archive.tree) if path.is_dir())
        match = next((path for path in candidates if _checksum_ok(archive, path)), None)
        if match is not None:
            found.append((archive, match))
        elif candidates:
            lacking.append(f"{archive.file} is there but its checksum is wrong (damaged or another data set's)")
        else:
            lacking.append(f"{archive.file} is missing" + (f", and so is a folder {archive.tree}" * bool(archive.tree)))
    return found, lacking


def _checksum_ok(archive: Archive, path: Path) -> bool:
    if archive.sha256 is not None:
        return file_hash(path) == archive.sha256
    if archive.md5 is not None:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "md5").hexdigest() == archive.md5
    return True


def _download(entry: DatasetEntry, folder: Path, progress: Progress | None) -> list[tuple[Archive, Path]]:
    """Fetch the first edition all of whose archives have an address."""
    archives = next((a for a in entry.editions.values() if all(archive.url for archive in a)), None)
    if archives is None:
        raise PrepareError(f"{entry.name!r} cannot be downloaded for you. {entry.instructions}")
    folder.mkdir()
    for archive in archives:
        _fetch(archive, folder / archive.file, progress)
        if not _checksum_ok(archive, folder / archive.file):
            raise PrepareError(f"{archive.url} arrived damaged: its checksum is wrong; try again")
    return [(archive, folder / archive.file) for archive in archives]


def _fetch(archive: Archive, path: Path, progress: Progress | None) -> None:
    """Download one archive. A full disk passes as `OSError`, failures of the network become `PrepareError`."""
    done = 0
    try:
        with urlopen(archive.url or "", timeout=60) as response, path.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(1 << 20):
                out.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(f"downloading {archive.file}", done, total)
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise PrepareError(f"{archive.url} could not be fetched: {error}") from error


def _shortened(lines: tuple[str, ...]) -> list[str]:
    return list(lines) if len(lines) <= 10 else [*lines[:10], f"… and {len(lines) - 10} more"]
