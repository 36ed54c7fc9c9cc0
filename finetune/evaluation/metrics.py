"""How well a mask agrees with the truth: overlap, and distance between surfaces in millimetres.

Masks are boolean arrays (H, W) or (D, H, W) of equal shape; `spacing` gives the millimetres from
one pixel to the next along each array axis, in the order of the axes. Beyond the array is
background. `docs/metrics.md` compares the definitions of the HD95.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from finetune.evaluation.surface import surface_elements

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


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
    prediction: Mask,
    target: Mask,
    spacing: Sequence[float],
    percentile: float = 95.0,
    definition: str = "surface",
) -> float:
    """Robust Hausdorff distance in mm: the larger of the two directed percentiles.

    Both masks empty: 0.0. One empty: infinity, as in surface-distance, so that a missed object
    cannot vanish from a mean as a NaN would.

    Args:
        percentile: In (0, 100].
        definition: One of `HD95_DEFINITIONS`. `surface`: a directed distance is the smallest one
            within which `percentile` per cent of one surface, by size, lies from the other
            (DeepMind's surface-distance). `monai`: it is that percentile of the distances from the
            object's edge pixels to the other object's, each pixel counting the same (MONAI's
            `compute_hausdorff_distance`).
    """
    _check(prediction, target, spacing)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile is {percentile}; expected above 0 and at most 100")
    if definition not in HD95_DEFINITIONS:
        names = ", ".join(HD95_DEFINITIONS)
        raise ValueError(f"definition is {definition!r}; expected one of {names}")
    if not prediction.any() or not target.any():
        return 0.0 if prediction.any() == target.any() else float("inf")
    return HD95_DEFINITIONS[definition](prediction, target, spacing, percentile)


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


def edge_distances(
    prediction: Mask, target: Mask, spacing: Sequence[float]
) -> tuple[Floats, Floats]:
    """Distances in mm of the prediction's edge pixels to the target's, and back; none empty.

    Edge pixels are those of the object that have a neighbour along an axis outside it.
    """
    crop = _bounding_box(prediction | target)
    one, other = (mask[crop] & ~binary_erosion(mask[crop]) for mask in (prediction, target))
    return _distances(one, other, spacing), _distances(other, one, spacing)


def _surface_hd95(
    prediction: Mask, target: Mask, spacing: Sequence[float], percentile: float
) -> float:
    return max(
        _weighted_percentile(distances, weights, percentile)
        for distances, weights in _surface_distances(prediction, target, spacing)
    )


def _monai_hd95(
    prediction: Mask, target: Mask, spacing: Sequence[float], percentile: float
) -> float:
    directed = edge_distances(prediction, target, spacing)
    return max(float(np.percentile(distances, percentile)) for distances in directed)


HD95_DEFINITIONS: dict[str, Callable[[Mask, Mask, Sequence[float], float], float]] = {
    "surface": _surface_hd95,
    "monai": _monai_hd95,
}


def _surface_distances(
    prediction: Mask, target: Mask, spacing: Sequence[float]
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(distances in mm, sizes) of the prediction's surface elements to the target's, and back."""
    crop = _bounding_box(prediction | target)  # nothing outside it can be surface
    one, other = (surface_elements(mask[crop], spacing) for mask in (prediction, target))
    on_one, on_other = ~np.isnan(one), ~np.isnan(other)
    return (
        (_distances(on_one, on_other, spacing), one[on_one]),
        (_distances(on_other, on_one, spacing), other[on_other]),
    )


def _distances(near: Mask, far: Mask, spacing: Sequence[float]) -> Floats:
    """Distance in mm from each element of `near` to the closest one of `far`."""
    distances: Floats = distance_transform_edt(~far, sampling=spacing)[near]
    return distances


def _weighted_percentile(values: Floats, weights: Floats, percentile: float) -> float:
    """The smallest value at or below which `percentile` per cent of the weight lies."""
    order = np.lexsort((weights, values))
    share = np.cumsum(weights[order]) / weights[order].sum()
    index = min(int(np.searchsorted(share, percentile / 100)), len(order) - 1)
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
