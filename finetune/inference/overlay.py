"""A picture of a mask over its image, at a bounded size whatever the size of the image."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

from data_prep.common.files import atomic_path
from data_prep.format.codec import encode_png

LONGEST = 1600
"""Longest side of the picture in pixels; larger images are shrunk by a whole factor."""
SHORTEST = 600
"""Images whose longest side is less than half of this are enlarged, so that clicks can be seen."""
BAND_PIXELS = 1 << 22
"""About so many pixels of a large image are shrunk at a time: Pillow takes several times theirs."""
MASK_COLOUR, MASK_OPACITY = (26, 128, 255), 0.45
POSITIVE_COLOUR, NEGATIVE_COLOUR = "lime", "red"
RADIUS = 5
"""Of the dot of a click, in pixels of the picture."""


def draw_overlay(
    image: NDArray[Any],
    mask: NDArray[np.bool_],
    path: Path,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    box: ArrayLike | None = None,
) -> None:
    """Write an image with a mask, its outline and the prompts that it was made from as PNG.

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16, white is the dtype's maximum.
        mask: (H, W).
        points: (n, 2) pixels (x, y).
        labels: (n,) 1 for green, 0 for red.
        box: X0, y0, x1, y1, see `finetune.prompts.boxes`.
    """
    longest = max(mask.shape)
    factor, times = -(-longest // LONGEST), max(1, SHORTEST // longest)
    scale = times / factor  # pixels of the picture per pixel of the image
    shown = _scaled(image, factor, times).convert("RGB")
    covered = _scaled(mask, factor, times)  # 255 where all pixels under one of these are the mask's
    shown.paste(MASK_COLOUR, mask=covered.point(lambda value: round(MASK_OPACITY * value)))
    inside = covered.point(lambda value: 255 * (value > 127))
    edge = np.asarray(inside) != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
    shown.paste(MASK_COLOUR, mask=Image.fromarray(edge))
    pen = ImageDraw.Draw(shown)
    if box is not None:
        x0, y0, x1, y1 = np.asarray(box, dtype=float) * scale
        corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        pen.rectangle(corners, outline=POSITIVE_COLOUR, width=2)
    dots = (np.asarray(points, dtype=float).reshape(-1, 2) + 0.5) * scale
    for (x, y), label in zip(dots, np.asarray(labels), strict=True):
        fill = POSITIVE_COLOUR if label else NEGATIVE_COLOUR
        pen.circle((x, y), RADIUS, fill=fill, outline="black")
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(np.asarray(shown)))


def _scaled(image: NDArray[Any], factor: int, times: int) -> Image.Image:
    """An image or a mask shrunk by the mean of `factor` pixels, and enlarged `times`, as 8-bit."""
    height, width = image.shape[:2]
    rows = factor * max(1, BAND_PIXELS // (factor * width))
    bands = [
        np.asarray(Image.fromarray(_as_8_bit(image[top : top + rows])).reduce(factor))
        for top in range(0, height, rows)
    ]
    small = Image.fromarray(np.concatenate(bands))
    if times == 1:
        return small
    return small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)


def _as_8_bit(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.dtype == np.bool_:
        return image.astype(np.uint8) * np.uint8(255)
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image
