"""What a data set is made of: one `DatasetEntry` per name, with licence, archives, contents and loader."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from repro.data.images import Fit, ImageSet
from repro.project import UserError

OnBadImage = Literal["stop", "skip"]


class UnknownDatasetError(UserError):
    """No data set of this name is registered."""


@dataclass(frozen=True)
class LoadRequest:
    """What `load_dataset` was asked for; see there."""

    split: str
    limit: int | None
    size: int | None
    seed: int
    on_bad_image: OnBadImage
    fit: Fit | None
    root: Path


@dataclass(frozen=True)
class Archive:
    """A file as its publisher hands it out.

    Attributes:
        file: its name.
        sha256, md5: published or measured checksum; with neither, any content is taken and contents are counted.
        url: where it can be fetched without a form to fill in, or None.
        only: glob of the members to unpack.
        into: subfolder of the data set's folder that receives it.
    """

    file: str
    sha256: str | None = None
    md5: str | None = None
    url: str | None = None
    only: str = "*"
    into: str = ""


@dataclass(frozen=True)
class Edition:
    """One complete set of archives a data set can be prepared from."""

    title: str
    archives: tuple[Archive, ...]


@dataclass(frozen=True)
class Contents:
    """A glob below the data set's folder and the numbers of files that make it complete (None: at least one)."""

    pattern: str
    counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DatasetEntry:
    """Everything known about one data set.

    Attributes:
        name: id used in parameters, folders and records.
        title: one line for people.
        licence: terms of use as the publisher states them.
        homepage: where it comes from.
        splits: names of its splits with their sizes as published (empty for files that are not images).
        loader: makes an `ImageSet` from a `LoadRequest`; None for metadata and weights.
        editions: archives it can be prepared from, the first complete one is used; empty for embedded sets.
        contents: what must lie in its folder afterwards.
        instructions: how to get it, in words.
        needs: other data sets that must be prepared too.
    """

    name: str
    title: str
    licence: str
    homepage: str
    splits: dict[str, int]
    loader: Callable[[LoadRequest], ImageSet] | None
    editions: tuple[Edition, ...] = ()
    contents: tuple[Contents, ...] = ()
    instructions: str = "Nothing to do: it is generated when it is used."
    needs: tuple[str, ...] = field(default=())

    @property
    def embedded(self) -> bool:
        """Whether it works without any file."""
        return not self.contents and not self.needs


def find_entry(name: str, entries: dict[str, DatasetEntry]) -> DatasetEntry:
    """The entry of that name.

    Raises:
        UnknownDatasetError: there is none; the message names the closest.
    """
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownDatasetError(f"dataset={name!r}: {hint}known are {', '.join(sorted(entries))}")
