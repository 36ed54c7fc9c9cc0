"""Mask images as label maps; refused where what they mean is not certain."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.options import ReadOptions
from data_prep.readers.colours import Colour, describe_colours, nearest_colour
from data_prep.readers.images import open_image
from data_prep.records import Unreadable

MAX_BETWEEN = 0.01
"""Share of a mask's pixels that may lie between its levels, as edges do after scaling."""


def read_label_map(path: Path, max_pixels: int, threshold: int | None, binary: bool) -> np.ndarray:
    """Read a mask image as integers.

    Args:
        threshold: If given, the mask is 1 where its grey value is at least this, and 0 elsewhere.
        binary: The mask has one value besides 0, whichever, which becomes 1.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        Unreadable: Not an image, colours, (if binary, without a threshold) several grey values, or
            a binary mask that lies below the threshold as a whole.
    """
    with _opened(path, max_pixels) as image:
        values = np.array(image)  # of a palette image: the indices, which are the labels
        if image.mode in ("1", "P") and (binary or threshold is not None):
            # A palette of greys may begin with white, and 1-bit white is 255 to a threshold.
            seen = np.array(image.convert("RGB"))
            if threshold is not None or (seen == seen[..., :1]).all():
                values = seen
    values = _grey(values)
    if threshold is not None:
        return _above(values, threshold)
    if binary:
        levels = np.unique(values)
        if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
            raise Unreadable(
                f"its mask has {len(levels)} grey values from {levels[0]} to {levels[-1]}: give"
                f" --labels if they are labels, or --threshold (such as {levels[-1] // 2 + 1})"
                " if it is a binary mask with soft edges"
            )
        return (values > 0).astype(np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable("its mask has values outside 0 to 65535")
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def read_colour_map(
    path: Path, max_pixels: int, colours: Sequence[Colour], tolerance: int
) -> np.ndarray:
    """Read a mask image in colours as indices into `colours`, of which the first is background.

    What is transparent shows the background. A palette stands for its colours.

    Args:
        tolerance: See `nearest_colour`.

    Returns:
        (H, W) uint8.

    Raises:
        Unreadable: Not an image, more than 8 bits, or other colours.
    """
    with _opened(path, max_pixels) as image:
        if image.mode.startswith(("I", "F")):
            raise Unreadable("its mask has grey values of more than 8 bits; leave --colors out")
        if image.has_transparency_data:
            behind = Image.new("RGBA", image.size, (*colours[0], 255))
            pixels = np.array(Image.alpha_composite(behind, image.convert("RGBA")))[..., :3]
        else:
            pixels = np.array(image.convert("RGB"))
    return nearest_colour(pixels, colours, tolerance)


def read_union(paths: Sequence[Path], max_pixels: int, threshold: int | None) -> np.ndarray:
    """(H, W) uint8, 1 where any of several binary mask images of one picture is set.

    Raises:
        Unreadable: See `read_label_map`; also masks of different sizes.
    """
    masks = [read_label_map(path, max_pixels, threshold, binary=True) for path in paths]
    if len({mask.shape for mask in masks}) > 1:
        raise Unreadable("its masks differ in size")
    return np.maximum.reduce(masks)


def nearest_level(values: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """(H, W) uint8 index of the level nearest to each grey value, for masks saved with soft edges.

    Raises:
        Unreadable: More than `MAX_BETWEEN` of the pixels lie clearly between two levels.
    """
    distance = np.abs(values[..., None].astype(np.int64) - np.asarray(levels))  # (H, W, levels)
    between = distance.min(axis=2) > np.diff(sorted(levels)).min() / 4
    if between.mean() > MAX_BETWEEN:
        raise Unreadable(f"its mask has other grey values than {', '.join(map(str, levels))}")
    return distance.argmin(axis=2).astype(np.uint8)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """A mask image; what fails while it is read is the fault of the file."""
    try:
        image = open_image(path.read_bytes(), max_pixels, ReadOptions.max_bytes)
    except Unreadable as error:
        raise Unreadable(f"its mask: {error}") from error
    try:
        with image:
            yield image
    except Unreadable:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything for a damaged file
        raise Unreadable(f"its mask is not a readable image ({type(error).__name__})") from error


def _above(values: np.ndarray, threshold: int) -> np.ndarray:
    mask = (values >= threshold).astype(np.uint8)
    if not mask.any() and len(levels := np.unique(values)) == 2:
        raise Unreadable(
            f"its mask has the values {levels[0]} and {levels[1]}, both below --threshold"
            f" {threshold}; leave --threshold out"
        )
    return mask


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W) of a grey mask, also one saved as RGB or with an opaque alpha channel."""
    if values.ndim == 3 and values.shape[2] in (2, 4):
        if (values[..., -1] != values[..., -1].max()).any():
            raise Unreadable("its mask is partly transparent")
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise Unreadable(
                f"its mask is coloured ({describe_colours(values)}); give --colors to layout"
                " pairs, or convert it to one label value per pixel"
            )
        values = values[..., 0]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise Unreadable("its mask has fractional values")
    return values
