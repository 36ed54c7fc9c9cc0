"""Mask images as label maps; refused where what they mean is not certain."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.images import FORMATS
from data_prep.records import Unreadable


def read_label_map(path: Path, max_pixels: int, threshold: int | None, binary: bool) -> np.ndarray:
    """Read a mask image as integers.

    Args:
        threshold: if given, the mask is 1 where its grey value is at least this, and 0 elsewhere.
        binary: the mask has one value beside 0, whichever, which becomes 1.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        Unreadable: not an image, colours, or (if binary, without a threshold) several grey values.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Unreadable("its mask exceeds max_pixels")
            values = np.array(image)  # of a palette image: the indices, which are the labels
    except Unreadable:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything for a damaged file
        raise Unreadable(f"its mask is no readable image ({type(error).__name__})") from error
    values = _grey(values)
    if threshold is not None:
        return (values >= threshold).astype(np.uint8)
    if binary:
        levels = np.unique(values)
        if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
            raise Unreadable(
                f"its mask has {len(levels)} grey values: give --labels if they are labels, or"
                " --threshold if it is a binary mask with soft edges"
            )
        return (values > 0).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("its mask has values outside 0 to 65535")
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W) of a grey mask, also one saved as RGB or with an opaque alpha channel."""
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if (values[..., -1] != values[..., -1].max()).any():
            raise Unreadable("its mask is partly transparent")
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise Unreadable("its mask is coloured; convert it to one label value a pixel")
        values = values[..., 0]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise Unreadable("its mask has fractional values")
    return values
