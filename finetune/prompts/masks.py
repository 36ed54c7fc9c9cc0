"""Mask prompts: a rough mask of an object, as a user or another program might give it."""

import cv2
import numpy as np
from numpy.typing import NDArray

from finetune.prompts.distance import exact_distance

WAVES = 4
"""A mask is bent by displacements that are drawn at so many points along each side of its box."""


def rough_mask(
    mask: NDArray[np.bool_], rng: np.random.Generator, amount: float = 0.2
) -> NDArray[np.bool_]:
    """A mask as somebody might draw it in a hurry: shifted, bent, and grown or shrunk.

    Lengths are in shares of the object's radius, that of a disc of its area: the shift along each
    axis and the growth are uniform in +-`amount`, and the displacements of the bending are normal
    with half of it.

    Args:
        mask: (H, W) bool.
        rng: Source of all choices.
        amount: See above; 0 leaves the mask as it is.

    Returns:
        (H, W) bool, not empty unless the mask is: one that would be is left as it is.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return mask.copy()
    reach = amount * float(np.sqrt(mask.sum() / np.pi))
    shift, growth = rng.uniform(-reach, reach, 2), rng.uniform(-reach, reach)
    waves = rng.standard_normal((2, WAVES, WAVES)) * reach / 2
    # Only the neighbourhood of the object can change; 4 deviations, the shift and the growth.
    margin = int(np.ceil(4 * reach)) + 2
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    area = (slice(top, rows[-1] + margin + 1), slice(left, columns[-1] + margin + 1))
    crop = mask[area]
    height, width = crop.shape
    moved = [
        (axis + offset + cv2.resize(wave, (width, height), interpolation=cv2.INTER_CUBIC))
        for axis, offset, wave in zip(np.ogrid[:height, :width], shift, waves, strict=True)
    ]
    moved_rows, moved_columns = (each.astype(np.float32) for each in moved)
    distance = cv2.remap(
        signed_distance(crop),
        moved_columns,
        moved_rows,
        interpolation=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    rough = np.zeros_like(mask)
    rough[area] = np.asarray(distance) > growth
    return rough if rough.any() else mask.copy()


def signed_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of each pixel's centre to the mask's edge, in pixels: positive inside.

    Of an empty or a full mask it is far from it: the longest side of the image.
    """
    if mask.all() or not mask.any():
        far = max(mask.shape) * (1 if mask.any() else -1)
        return np.full(mask.shape, far, np.float32)
    inside, outside = exact_distance(mask), exact_distance(~mask)
    # Distances run between centres, and the edge lies half a pixel before the other side's.
    return np.asarray(inside - outside + 0.5 - mask, dtype=np.float32)
