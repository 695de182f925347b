"""Files that are either whole or absent: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_NUMBERS = re.compile(r"\[\n\s*-?\d[\d.eE+-]*(?:,\n\s*-?\d[\d.eE+-]*)*\n\s*\]")


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` on success, remove it on any failure.

    Raises:
        OSError: the folder cannot be written or the disk is full; `target` is then as it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_locked(lock: Path) -> bool:
    """Whether a living process holds this lock file; True where that cannot be told, e.g. without write permission."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def remove_temporary_files(folder: Path) -> int:
    """Delete what `atomic_path` left in `folder` when its process was killed; returns the bytes freed.

    Call it only while no other process writes there, i.e. under the folder's lock.
    """
    freed = 0
    for path in folder.glob(".*.tmp"):
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def read_json(path: Path) -> Any | None:
    """The JSON value of `path`, or None where there is no readable one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_changed(texts: Mapping[Path, str]) -> list[Path]:
    """Write those texts that differ from their files and return their paths; where one fails, none is written."""
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_bytes() != text.encode()]
    with ExitStack() as stack:
        for path in changed:
            with stack.enter_context(atomic_path(path)).open("wb") as stream:
                stream.write(texts[path].encode())
                os.fsync(stream.fileno())  # so that the renames follow each other at once
    return changed


def write_bytes(target: Path, content: bytes) -> None:
    """Write `content` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity are refused because JSON has neither.

    A list of numbers is one line: a record's values per image would be thousands of lines otherwise.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    write_text(target, _NUMBERS.sub(lambda found: re.sub(r"\s+", "", found[0]), text) + "\n")


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces; the basis of every content hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
