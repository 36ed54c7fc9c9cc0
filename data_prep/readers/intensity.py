"""Grey values of any range to stored integers, on which white is the dtype's maximum."""

from typing import Literal

import numpy as np

from data_prep.options import Window
from data_prep.records import Unreadable

PERCENTILES = (0.5, 99.5)
NARROW = 64
"""How many times its width a window may lie from 0 before it takes double precision."""


def intensity_limits(values: np.ndarray, window: Window) -> tuple[float, float]:
    """The values that become black and white. `auto` here means percentiles.

    Args:
        values: Any shape, non-empty, finite.
    """
    if isinstance(window, tuple):
        return window
    if window == "full":
        return float(values.min()), float(values.max())
    low, high = np.percentile(values, PERCENTILES)
    if low == high:  # a few bright pixels on an even ground
        return float(values.min()), float(values.max())
    return float(low), float(high)


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
