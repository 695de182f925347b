"""`load_dataset`: one call from a registry name to an `ImageSet`."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from repro.data.entries import ENTRIES
from repro.data.images import Fit, ImageSet
from repro.data.preparation import check
from repro.data.registry import LoadRequest, OnBadImage, find_entry
from repro.project import UserError, data_root


class MissingDataError(UserError):
    """Files of the data set are not on this machine; the text says which and how to get them."""


def load_dataset(
    name: str,
    split: str = "test",
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
    on_bad_image: OnBadImage = "stop",
    fit: Fit | None = None,
    root: Path | None = None,
) -> ImageSet:
    """Load a data set of the registry.

    Args:
        name: see `repro data list`.
        split: every set has `test`; others as registered.
        limit: number of images, None for all. Generated sets (scenes, font digits, garment scenes) give the first
            `limit` of the stream chosen by `seed`; stored sets a class-balanced draw by `seed`, see
            `listing.class_balanced_draw`, in the publisher's order.
        size: side of the square images in pixels; None means the set's own.
        seed: of the draw or stream.
        on_bad_image: "stop" at damaged images, naming them; "skip" leaves them out and lists them in `skipped`.
        fit: how an image becomes a square: short side to `size` and centre crop, squashed, or padded with black;
            None means the set's own (localisation sets are squashed, as in the WSOL benchmark; others cropped).
        root: data root, default `data_root()`.

    Raises:
        ValueError: unknown name, split or option (subclasses `UnknownDatasetError`, `UnknownSplitError`).
        MissingDataError: files are missing.
        DamagedImageError: images cannot be read and `on_bad_image="stop"`.
    """
    root = root or data_root()
    loader = _checked_loader(name, limit, size, on_bad_image, fit)
    state = check(name, root, hashes=False)
    if state.missing and on_bad_image == "stop":
        raise MissingDataError(str(state))
    try:
        return loader(LoadRequest(split, limit, size, seed, on_bad_image, fit, root))
    except FileNotFoundError as error:
        raise MissingDataError(f"{error}\n{state}") from error


def data_path(name: str, relative: str, root: Path | None = None) -> Path:
    """A file or folder of the data set `name`, e.g. `data_path("wsol_metadata", "metadata/CUB/test")`.

    Raises:
        UnknownDatasetError: no such data set.
        MissingDataError: it is not there; the text says how to get it.
    """
    entry = find_entry(name, ENTRIES)
    path = (root or data_root()) / name / relative
    if not path.exists():
        raise MissingDataError(f"{path} is missing. {entry.instructions}")
    return path


def _checked_loader(
    name: str, limit: int | None, size: int | None, on_bad_image: str, fit: str | None
) -> Callable[[LoadRequest], ImageSet]:
    """The loader of the data set, once every option has an allowed value."""
    entry = find_entry(name, ENTRIES)
    for key, value in (("limit", limit), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{key}={value} of {name!r}: expected at least 1, or None")
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image={on_bad_image!r}: expected one of {', '.join(get_args(OnBadImage))}")
    if fit is not None and fit not in get_args(Fit):
        raise ValueError(f"fit={fit!r}: expected None or one of {', '.join(get_args(Fit))}")
    if entry.loader is None:
        raise ValueError(f"{name!r} holds no images: use data_path({name!r}, <file>)")
    return entry.loader
