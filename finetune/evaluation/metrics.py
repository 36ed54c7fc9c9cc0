"""How well a mask agrees with the truth: overlap, and distance between surfaces in millimetres.

Masks are boolean arrays (H, W) or (D, H, W) of equal shape; `spacing` gives the millimetres from
one pixel to the next along each array axis, in the order of the axes.

Surfaces follow Nikolov et al. 2021 (arXiv 1809.04430, DeepMind's surface-distance): a surface
element sits at each pixel corner whose 2^n surrounding pixels are not all alike, and counts by its
size. The size here is the length of the mask's gradient at that corner times the volume of a pixel
(coarea formula) in place of their table of marching-cubes patches; in 2D the two agree except where
pixels meet only diagonally, which count nothing here. Beyond the array is background.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]
Weighted = tuple[NDArray[np.float64], NDArray[np.float64]]


def dice(prediction: Mask, target: Mask) -> float:
    """2 |P and T| / (|P| + |T|), in 0..1. Both empty: 1.0; one empty: 0.0."""
    _check(prediction, target)
    total = int(prediction.sum()) + int(target.sum())
    return 2 * int((prediction & target).sum()) / total if total else 1.0


def iou(prediction: Mask, target: Mask) -> float:
    """|P and T| / |P or T|, in 0..1. Both empty: 1.0; one empty: 0.0."""
    _check(prediction, target)
    union = int((prediction | target).sum())
    return int((prediction & target).sum()) / union if union else 1.0


def hd95(
    prediction: Mask, target: Mask, spacing: Sequence[float], percentile: float = 95.0
) -> float:
    """Robust Hausdorff distance in mm: the larger of the two directed percentiles.

    Each directed distance is the smallest one within which `percentile` per cent of one surface, by
    size, lies from the other. Both masks empty: 0.0. One empty: infinity, as in surface-distance,
    so that a missed object cannot vanish from a mean as a NaN would.
    """
    _check(prediction, target, spacing)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; expected above 0 and at most 100")
    if not prediction.any() or not target.any():
        return 0.0 if prediction.any() == target.any() else float("inf")
    return max(
        _weighted_percentile(distances, weights, percentile)
        for distances, weights in _surface_distances(prediction, target, spacing)
    )


def nsd(prediction: Mask, target: Mask, spacing: Sequence[float], tolerance: float = 1.0) -> float:
    """Normalised surface Dice: the share of both surfaces within `tolerance` mm of the other.

    In 0..1. Both masks empty: 1.0 (surface-distance gives NaN); one empty: 0.0.
    """
    _check(prediction, target, spacing)
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance} mm; expected 0 or more")
    if not prediction.any() or not target.any():
        return float(prediction.any() == target.any())
    within = total = 0.0
    for distances, weights in _surface_distances(prediction, target, spacing):
        # A distance of 3 x 0.1 mm is within 0.3 mm whatever its last bit says.
        within += weights[distances <= tolerance + 1e-9].sum()
        total += weights.sum()
    return float(within / total)


def _surface_distances(
    prediction: Mask, target: Mask, spacing: Sequence[float]
) -> tuple[Weighted, Weighted]:
    """(distances in mm, sizes) of the prediction's surface elements to the target's, and back."""
    crop = _bounding_box(prediction | target)  # nothing outside it can be surface
    sizes = [_surface_elements(mask[crop], spacing) for mask in (prediction, target)]
    directed = []
    for near, far in (sizes, sizes[::-1]):
        on_surface = ~np.isnan(near)
        distance = distance_transform_edt(np.isnan(far), sampling=spacing)
        directed.append((distance[on_surface], near[on_surface]))
    return directed[0], directed[1]


def _surface_elements(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Size (mm in 2D, mm^2 in 3D) of the surface at each pixel corner; NaN where there is none.

    An array of n pixels along an axis has n + 1 corners along it. Means and differences are over
    the 2^n pixels around a corner.
    """
    values = np.pad(mask, 1).astype(np.float64)
    fill = values
    for axis in range(mask.ndim):
        fill = _pair_mean(fill, axis)
    squared = np.zeros_like(fill)
    for axis, step in enumerate(spacing):
        slope = np.diff(values, axis=axis) / step
        for other in range(mask.ndim):
            if other != axis:
                slope = _pair_mean(slope, other)
        squared += slope**2
    sizes = np.sqrt(squared) * np.prod(spacing)
    return np.where((fill > 0) & (fill < 1), sizes, np.nan)


def _pair_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Means of neighbours along an axis; one fewer than before."""
    length = values.shape[axis]
    return (values.take(range(length - 1), axis) + values.take(range(1, length), axis)) / 2


def _weighted_percentile(
    values: NDArray[np.float64], weights: NDArray[np.float64], percentile: float
) -> float:
    """The smallest value at or below which `percentile` per cent of the weight lies."""
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    index = np.searchsorted(share, share[-1] * percentile / 100)
    return float(values[order[index]])


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    occupied = (
        np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        for axis in range(mask.ndim)
    )
    return tuple(slice(where[0], where[-1] + 1) for where in occupied)


def _check(prediction: Mask, target: Mask, spacing: Sequence[float] | None = None) -> None:
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise ValueError(f"expected bool masks, got {prediction.dtype} and {target.dtype}")
    if prediction.shape != target.shape or prediction.ndim not in (2, 3):
        raise ValueError(
            f"masks have shapes {prediction.shape} and {target.shape}; "
            "expected equal ones, (H, W) or (D, H, W)"
        )
    if spacing is not None and (len(spacing) != target.ndim or min(spacing) <= 0):
        raise ValueError(f"spacing {tuple(spacing)} must be one positive number for each axis")
