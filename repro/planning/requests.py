"""What one table asks for: its works, the images behind them, and what should be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from repro.planning.stand_ins import cached_bytes, note_shape
from repro.planning.work import Work


class Images(NamedTuple):
    """A split of a data set as it is used."""

    dataset: str
    split: str
    limit: int | None
    size: int | None


@dataclass
class Request:
    """Everything a table's prediction is made of."""

    works: list[Work] = field(default_factory=list)
    images: set[Images] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def cache_bytes(self) -> dict[Images, int]:
        """Disk space of the images by what is cached."""
        return {images: cached_bytes(*images) for images in self.images}

    def all_notes(self) -> tuple[str, ...]:
        """Own notes and those on data that are not here, without repetition."""
        return tuple(
            dict.fromkeys(
                [*self.notes, *filter(None, (note_shape(*images) for images in sorted(self.images, key=str)))]
            )
        )
