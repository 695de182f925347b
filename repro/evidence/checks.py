"""Checks that the statistics share: clear refusals instead of NaN results."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1), e.g. 95 instead of 0.95."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: expected a fraction between 0 and 1, e.g. 0.95")


def finite_array(name: str, values: ArrayLike, ndim: int | None = None) -> NDArray[np.float64]:
    """`values` as float64; refuses the wrong number of axes, no entries, NaN and infinity."""
    array = np.asarray(values, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}: expected {ndim} axes")
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: expected at least one value")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{name} holds {bad} value(s) that are NaN or infinite: drop or repair those runs first")
    return array


def paired_arrays(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64 of one shape; refuses pairs that do not match entry by entry."""
    one, other = finite_array("first", first), finite_array("second", second)
    if one.shape != other.shape:
        raise ValueError(
            f"first has shape {one.shape}, second {other.shape}: pairs need the same seeds and images in the same order"
        )
    return one, other
