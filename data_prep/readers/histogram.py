"""Limits of integers by counting their values: exact as sorting them, without a copy of them."""

import numpy as np

from data_prep.options import Window
from data_prep.readers.intensity import intensity_limits


def counted_limits(
    values: np.ndarray, window: Window, outside: tuple[float, float] | None = None
) -> tuple[float, float]:
    """As `intensity_limits`, which it is for other values than integers of at most 16 bits.

    Args:
        values: Any shape, non-empty, finite.
        outside: The first and last of the values that do not count, unless there are no others.
    """
    if isinstance(window, tuple) or values.dtype.kind not in "iu" or values.itemsize > 2:
        if outside is not None:
            inside = values[(values < outside[0]) | (values > outside[1])]
            values = inside if inside.size else values
        return intensity_limits(values, window)
    least = int(np.iinfo(values.dtype).min)
    levels = np.arange(least, int(np.iinfo(values.dtype).max) + 1)
    counts = np.zeros(len(levels), np.int64)
    for part in values:
        counts += np.bincount(part.ravel().astype(np.int64) - least, minlength=len(levels))
    if outside is not None:
        inner = np.where((levels < outside[0]) | (levels > outside[1]), counts, 0)
        counts = inner if inner.any() else counts
    present = np.flatnonzero(counts)
    return intensity_limits(levels[present], window, counts[present])
