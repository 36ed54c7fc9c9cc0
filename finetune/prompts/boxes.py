"""Box prompts: the box of a mask, and boxes drawn less exactly than that.

A box is (x0, y0, x1, y1), its corners in continuous coordinates, as SAM scales and takes it: the
pixel in column x and row y covers x to x + 1 and y to y + 1, so that it has the box
(x, y, x + 1, y + 1), and a box that is scaled with its image still encloses the same object.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

REFERENCE_SIDE = 1024
"""Longest side, in pixels, of the images for which `jitter_box` states its `max_pixels`."""


def box_of(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """The smallest box around a mask (H, W), (4,) float (x0, y0, x1, y1); None if it is empty."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return None
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.array(corners, dtype=np.float64)


def boxes_of(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The boxes (M, 4) of masks (M, H, W).

    Raises:
        ValueError: A mask is empty.
    """
    boxes = [box for mask in masks if (box := box_of(mask)) is not None]
    if len(boxes) < len(masks):
        raise ValueError(f"{len(masks) - len(boxes)} of {len(masks)} masks are empty: no box")
    return np.array(boxes).reshape(-1, 4)


def jitter_box(
    box: ArrayLike,
    rng: np.random.Generator,
    size: tuple[int, int],
    ratio: float = 0.1,
    max_pixels: float | None = None,
) -> NDArray[np.float64]:
    """Move each side of a box by Gaussian noise, as SAM does in training (SAM paper, appendix A).

    Args:
        box: (x0, y0, x1, y1).
        rng: Source of the noise.
        size: (height, width) of the image.
        ratio: Standard deviation of the noise as a share of the box's width (for x0, x1) or
            height (for y0, y1).
        max_pixels: Bound on the noise in an image whose longest side is `REFERENCE_SIDE`; scaled
            in proportion in others. None: SAM's 20 for SAM's ratio of 0.1, and in proportion.

    Returns:
        (4,) float, inside the image, with x0 <= x1 and y0 <= y1.
    """
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    height, width = size
    bound = (200 * ratio if max_pixels is None else max_pixels) * max(size) / REFERENCE_SIDE
    deviation = ratio * np.array([x1 - x0, y1 - y0] * 2)
    noise = (rng.standard_normal(4) * deviation).clip(-bound, bound)
    corners = (np.array([x0, y0, x1, y1]) + noise).reshape(2, 2)  # rows: corners; columns: x, y
    corners = np.sort(corners, axis=0)  # noise may carry one side of a thin box past the other
    return corners.clip(0.0, [width, height]).reshape(4)
