"""How deep pixels lie inside a mask."""

import cv2
import numpy as np
from numpy.typing import NDArray


def exact_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Exact distance (H, W) of each pixel in the mask to the nearest outside it, if there is one.

    Rounded to float32, in which different distances stay different and equal ones equal, in images
    of up to some thousand pixels a side.
    """
    found = cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Its square roots differ in the last bit from call to call, by where in memory pixels lie; the
    # squares are whole numbers.
    return np.sqrt(np.rint(np.square(found, dtype=np.float64))).astype(np.float32)
