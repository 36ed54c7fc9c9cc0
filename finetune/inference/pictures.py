"""Panels of a figure: an image with mask, clicks and box over it."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from finetune.inference.overlay import (
    MASK_COLOUR,
    MASK_OPACITY,
    NEGATIVE_COLOUR,
    POSITIVE_COLOUR,
)

PREDICTION_COLOUR = (*(channel / 255 for channel in MASK_COLOUR), MASK_OPACITY)
TRUTH_COLOUR = "gold"


def show(
    axes: Axes,
    image: NDArray[Any],
    mask: NDArray[np.bool_] | None = None,
    points: ArrayLike = (),
    labels: ArrayLike = (),
    box: ArrayLike | None = None,
) -> None:
    """Draw an image with a mask, clicks and a box over it.

    Args:
        points: (n, 2) pixels (x, y).
        labels: (n,) 1 for green, 0 for red.
        box: X0, y0, x1, y1, see `finetune.prompts.boxes`.
    """
    axes.imshow(image, cmap="gray", vmin=0, vmax=np.iinfo(image.dtype).max)
    if mask is not None:
        axes.imshow(mask[..., None] * np.array(PREDICTION_COLOUR))
    dots = np.asarray(points, dtype=float).reshape(-1, 2)
    colours = [POSITIVE_COLOUR if label else NEGATIVE_COLOUR for label in np.asarray(labels)]
    axes.scatter(dots[:, 0], dots[:, 1], c=colours, s=22, edgecolors="black", linewidths=0.6)
    if box is not None:
        x0, y0, x1, y1 = np.asarray(box, dtype=float) - 0.5  # here pixel centres are whole
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=POSITIVE_COLOUR, linewidth=1)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.axis("off")


def outline(axes: Axes, mask: NDArray[np.bool_], colour: Any = TRUTH_COLOUR) -> None:
    """Draw the edge of a mask (H, W)."""
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)
