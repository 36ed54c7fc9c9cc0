"""Grey values of any range to stored integers, on which white is the dtype's maximum."""

from typing import Literal

import numpy as np

from data_prep.options import Window
from data_prep.records import Unreadable

PERCENTILES = (0.5, 99.5)
FEW_PIXELS = 1 << 15
"""Smaller arrays gain nothing by a table of their values."""
NARROW = 64
"""How many times its width a window may lie from 0 before it takes double precision."""


def intensity_limits(
    values: np.ndarray, window: Window, counts: np.ndarray | None = None
) -> tuple[float, float]:
    """The values that become black and white. `auto` here means percentiles.

    Args:
        values: Any shape, non-empty, finite.
        counts: How often each of `values` occurs, if not once.
    """
    if isinstance(window, tuple):
        return window
    if window == "full":
        return float(values.min()), float(values.max())
    if counts is None:
        low, high = np.percentile(values, PERCENTILES)
    else:
        low, high = (_counted_percentile(values, counts, each) for each in PERCENTILES)
    if low == high:  # a few bright pixels on an even ground
        return float(values.min()), float(values.max())
    return float(low), float(high)


def _counted_percentile(values: np.ndarray, counts: np.ndarray, percentile: float) -> float:
    """What `np.percentile` gives for `np.repeat(values, counts)`, to the last bit."""
    order = np.argsort(values)
    ends = np.cumsum(counts[order])
    rank = (ends[-1] - 1) * (percentile / 100)
    below = int(rank)
    two = values[order][np.searchsorted(ends, (below, min(below + 1, ends[-1] - 1)), "right")]
    return float(np.quantile(two, rank - below))


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The values that occur in an array of 8- or 16-bit integers of any shape.

    What becomes of a pixel depends on its value alone, and there are far fewer values than pixels.

    Returns:
        The values (n,), how often each occurs (n,), and the array as numbers below 256 or 65536,
        which `look_up` takes; None for other types, and where there are few pixels.
    """
    if values.dtype.kind not in "ui" or values.itemsize > 2 or not values.dtype.isnative:
        return None
    if values.size < FEW_PIXELS:
        return None
    unsigned = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    counts = np.bincount(unsigned.ravel())
    found = np.flatnonzero(counts)
    return found.astype(unsigned.dtype).view(values.dtype), counts[found], unsigned


def look_up(table: np.ndarray, values: np.ndarray, unsigned: np.ndarray) -> np.ndarray:
    """An array in which each of the `values` of `distinct` is replaced by its entry of `table`."""
    places = values.view(unsigned.dtype)
    whole = np.zeros(int(places.max()) + 1, table.dtype)
    whole[places] = table
    return whole.take(unsigned)


def unit_to_integers(unit: np.ndarray, bits: Literal[8, 16]) -> np.ndarray:
    """[0, 1] (clipped) to uint8 or uint16 of the same shape, to the nearest integer."""
    top = (1 << bits) - 1
    return (np.clip(unit, 0, 1) * top + 0.5).astype(np.uint8 if bits == 8 else np.uint16)


def to_integers(
    values: np.ndarray, limits: tuple[float, float], bits: Literal[8, 16]
) -> np.ndarray:
    """Map `limits` linearly to 0 and the maximum of `bits` bits; an even image becomes black."""
    low, high = limits
    if high <= low:
        return np.zeros(values.shape, np.uint8 if bits == 8 else np.uint16)
    # float32 holds every 16-bit result exactly and halves the memory of a volume; but in a narrow
    # window around large values it would lose the contrast
    is_narrow = max(abs(low), abs(high)) > NARROW * (high - low)
    values = values.astype(np.float64 if is_narrow else np.float32)
    return unit_to_integers((values - low) / (high - low), bits)


def replace_not_finite(values: np.ndarray) -> np.ndarray:
    """NaN and infinities to the smallest finite value, as scanners' tools use them for background.

    Raises:
        Unreadable: No value is finite.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return values
    finite = np.isfinite(values)
    if finite.all():
        return values
    if not finite.any():
        raise Unreadable("no pixel has a finite value")
    return np.where(finite, values, values[finite].min())
