"""Data sets: registry, embedded sets, preparation from archives, integrity."""

from repro.data.archives import DamagedArchiveError, UnsafeArchiveError
from repro.data.images import BadImage, ImageSet, UnreadableImageError, label_map, read_image
from repro.data.listing import DamagedFileError, DamagedImageError, UnknownSplitError
from repro.data.load import MissingDataError, data_path, load_dataset
from repro.data.preparation import CheckResult, PrepareError, check, prepare
from repro.data.registry import ENTRIES, DatasetEntry, UnknownDatasetError, describe
from repro.data.scenes import load_scenes
from repro.data.wsol_metadata import WsolMetadata, read_wsol_metadata

__all__ = [
    "ENTRIES",
    "BadImage",
    "CheckResult",
    "DamagedArchiveError",
    "DamagedFileError",
    "DamagedImageError",
    "DatasetEntry",
    "ImageSet",
    "MissingDataError",
    "PrepareError",
    "UnknownDatasetError",
    "UnknownSplitError",
    "UnreadableImageError",
    "UnsafeArchiveError",
    "WsolMetadata",
    "check",
    "data_path",
    "describe",
    "label_map",
    "load_dataset",
    "load_scenes",
    "prepare",
    "read_image",
    "read_wsol_metadata",
]
