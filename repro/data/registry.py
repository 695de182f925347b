"""The registry of data sets: `sets.yaml` as typed entries, with licence, splits, archives and contents of each."""

import difflib
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from repro.project import UserError

Fit = Literal["crop", "squash", "pad"]
"""How an image becomes a square: short side to `size`, then centre crop; both sides to `size` (aspect ratio lost);
or centred on black without resampling."""

OnBadImage = Literal["stop", "skip"]


class UnknownDatasetError(UserError):
    """No data set of this name is registered."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Archive(_Strict):
    """A file as its publisher hands it out."""

    file: str
    """Its name."""
    sha256: str | None = None
    md5: str | None = None
    """Published or measured checksum; with neither, any content is taken and contents are counted."""
    url: str | None = None
    """Where it can be fetched without a form to fill in, or None."""
    tree: str | None = None
    """Folder that a clone of the publisher's repository makes, taken as it is; the packed tree (`file`) carries such a
    folder around its files."""
    becomes: str | None = None
    """Name of the file that `origins.CONVERTERS` makes of it; None where it is used as it is."""
    only: str = "*"
    """Glob of the members to unpack."""
    into: str = ""
    """Subfolder of the data set's folder that receives it."""
    at_most: list[int] | None = None
    """Most files and bytes that it may unpack to; None for a file that is not unpacked."""


class DatasetEntry(_Strict):
    """Everything known about one data set."""

    name: str
    """Id used in parameters, folders and records, and name of its reader in `load`."""
    title: str
    licence: str
    """Terms of use as the publisher states them."""
    homepage: str
    classes: int = 0
    size: int = 224
    """Side of its images in pixels, unless the caller wants another."""
    fit: Fit = "crop"
    cached: bool = False
    """Whether decoded images are kept on disk."""
    masks: bool = False
    """Whether the cache holds masks too."""
    splits: dict[str, int] = Field(default_factory=dict)
    """Its splits with their sizes as published; empty for files that are not images."""
    by_hand: list[str] = Field(default_factory=list)
    """Further splits that can be read where somebody put them."""
    editions: dict[str, list[Archive]] = Field(default_factory=dict)
    """Sets of archives it can be prepared from, the first complete one is used; empty for embedded sets."""
    contents: dict[str, list[int]] = Field(default_factory=dict)
    """Glob below its folder → the numbers of files that make it complete, one per edition."""
    at_least: dict[str, int] = Field(default_factory=dict)
    """Glob → the fewest files, where the publisher's exact number is not known."""
    needs: list[str] = Field(default_factory=list)
    """Other data sets that must be prepared too."""
    instructions: str = "Nothing to do: it is generated when it is used."
    """How to get it, in words."""

    @property
    def embedded(self) -> bool:
        """Whether it works without any file."""
        return not (self.contents or self.at_least or self.needs)

    def cache_bytes(self, split: str, limit: int | None = None, size: int | None = None) -> int:
        """Bytes of its decoded images (and masks) as kept on disk after the first reading; 0 where nothing is kept."""
        if not self.cached:
            return 0
        count = self.splits[split] if limit is None else min(limit, self.splits[split])
        planes = 5 if self.masks and split != "train" else 3
        return planes * count * (size or self.size) ** 2


def _read() -> dict[str, DatasetEntry]:
    raw = yaml.safe_load(resources.files("repro.data").joinpath("sets.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(dict[str, DatasetEntry]).validate_python({name: {"name": name} | raw[name] for name in raw})


ENTRIES: dict[str, DatasetEntry] = _read()


def find_entry(name: str) -> DatasetEntry:
    """The entry of that name.

    Raises:
        UnknownDatasetError: there is none; the message names the closest.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    close = difflib.get_close_matches(name, ENTRIES, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownDatasetError(f"dataset={name!r}: {hint}known are {', '.join(sorted(ENTRIES))}")


def describe() -> list[dict[str, str]]:
    """One row per data set for `repro data list`: name, title, licence, splits, homepage, how to get it."""
    return [
        {
            "name": entry.name,
            "title": entry.title,
            "licence": entry.licence,
            "splits": ", ".join(f"{split} {count:,}" for split, count in entry.splits.items()),
            "homepage": entry.homepage,
            "get": entry.instructions,
        }
        for entry in ENTRIES.values()
    ]
