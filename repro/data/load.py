"""`load_dataset`: one call from a registry name to an `ImageSet`."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from repro.data import readers
from repro.data.images import ImageSet
from repro.data.listing import Listing, LoadRequest, choose_split, load_listing
from repro.data.preparation import check
from repro.data.registry import ENTRIES, DatasetEntry, Fit, OnBadImage, find_entry
from repro.data.scenes import load_font_digits, load_garment_scenes, load_scenes
from repro.project import UserError, data_root

GENERATORS: dict[str, Callable[[LoadRequest], ImageSet]] = {
    "scenes": lambda r: load_scenes(r.split, r.limit, r.size, r.seed, 1),
    "scenes_two_objects": lambda r: load_scenes(r.split, r.limit, r.size, r.seed, 2),
    "font_digits": lambda r: load_font_digits(r.split, r.limit, r.size, r.seed),
    "garment_scenes": lambda r: load_garment_scenes(r.root, r.split, r.limit, r.size, r.seed),
}
"""Sets that are streams: image `i` of (split, seed) is made when it is asked for."""

READERS: dict[str, Callable[[Path, str], Listing]] = {
    name: getattr(readers, name) for name, entry in ENTRIES.items() if entry.splits and name not in GENERATORS
}
"""Sets that are listed first and read then: `(folder, split)` → listing, a function of that name in `readers`."""


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

    Example:
        >>> load_dataset("scenes", limit=8).images.shape
        torch.Size([8, 3, 64, 64])
    """
    root, entry = root or data_root(), find_entry(name)
    _check_options(entry, split, limit, size, on_bad_image, fit)
    state = check(name, root, hashes=False)
    if state.missing and on_bad_image == "stop":
        raise MissingDataError(str(state))
    request = LoadRequest(split, limit, size or entry.size, seed, on_bad_image, fit or entry.fit, root)
    try:
        if name in GENERATORS:
            return GENERATORS[name](request)
        return load_listing(name, READERS[name](root / name, split), request, entry.cached)
    except FileNotFoundError as error:
        raise MissingDataError(f"{error}\n{state}") from error


def data_path(name: str, relative: str, root: Path | None = None) -> Path:
    """A file or folder of the data set `name`, e.g. `data_path("wsol_metadata", "metadata/CUB/test")`.

    Raises:
        UnknownDatasetError: no such data set.
        MissingDataError: it is not there; the text says how to get it.
    """
    entry = find_entry(name)
    path = (root or data_root()) / name / relative
    if not path.exists():
        raise MissingDataError(f"{path} is missing. {entry.instructions}")
    return path


def _check_options(
    entry: DatasetEntry, split: str, limit: int | None, size: int | None, on_bad_image: str, fit: str | None
) -> None:
    if not entry.splits:
        raise ValueError(f"{entry.name!r} holds no images: use data_path({entry.name!r}, <file>)")
    choose_split(dict.fromkeys((*entry.splits, *entry.by_hand)), split, entry.name)
    for key, value in (("limit", limit), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{key}={value} of {entry.name!r}: expected at least 1, or None")
    if on_bad_image not in get_args(OnBadImage):
        raise ValueError(f"on_bad_image={on_bad_image!r}: expected one of {', '.join(get_args(OnBadImage))}")
    if fit is not None and fit not in get_args(Fit):
        raise ValueError(f"fit={fit!r}: expected None or one of {', '.join(get_args(Fit))}")
