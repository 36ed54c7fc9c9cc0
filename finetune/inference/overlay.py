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
COLOURS = (
    MASK_COLOUR,
    (255, 140, 0),
    (190, 60, 220),
    (255, 220, 40),
    (40, 210, 190),
    (255, 90, 140),
)
"""Of the objects 1, 2, ..., again and again."""
POSITIVE_COLOUR, NEGATIVE_COLOUR = "lime", "red"
RADIUS = 5
"""Of the dot of a click, in pixels of the picture."""


def draw_overlay(
    image: NDArray[Any],
    mask: NDArray[Any],
    path: Path,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    boxes: ArrayLike = (),
) -> None:
    """Write an image with masks, their outlines and the prompts that they were made from as PNG.

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16, white is the dtype's maximum.
        mask: (H, W), bool, or uint8 with the values of the objects, 0 elsewhere.
        points: (n, 2) pixels (x, y).
        labels: (n,) 1 for green, 0 for red.
        boxes: (4,) or (m, 4), see `finetune.prompts.boxes`.
    """
    longest = max(mask.shape)
    factor, times = -(-longest // LONGEST), max(1, SHORTEST // longest)
    scale = times / factor  # pixels of the picture per pixel of the image
    shown = _scaled(image, factor, times).convert("RGB")
    for value in np.unique(mask):
        if value:
            colour = COLOURS[(int(value) - 1) % len(COLOURS)]
            covered = _scaled(mask == value, factor, times)  # 255 where all pixels under it are its
            shown.paste(colour, mask=covered.point(lambda share: round(MASK_OPACITY * share)))
            inside = covered.point(lambda share: 255 * (share > 127))
            edge = np.asarray(inside) != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
            shown.paste(colour, mask=Image.fromarray(edge))
    pen = ImageDraw.Draw(shown)
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=float).reshape(-1, 4) * scale:
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
