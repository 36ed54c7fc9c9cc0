"""Simulated clicks in their plain form, for comparison: scipy on whole images, mask by mask.

Rule and random draws are those of `finetune.prompts.clicks`, so the same state gives the same
clicks.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from finetune.prompts.clicks import Click, ClickSampling, Labels, Points

EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def plain_first_clicks(
    mask: NDArray[np.bool_], rng: np.random.Generator, sampling: ClickSampling
) -> tuple[Points, Labels]:
    """As `random_clicks`, of a mask (H, W) that is neither empty nor full."""
    scale = max(mask.shape) / sampling.reference_side
    clicks, labels = [], []
    draws = []
    for least, most, steps, margins in (
        (1, sampling.max_positive, sampling.positive_steps, sampling.positive_margins),
        (0, sampling.max_negative, sampling.negative_steps, sampling.negative_margins),
    ):
        number = int(rng.integers(least, most + 1))
        draws.append((number, rng.choice(steps) * scale, rng.choice(margins) * scale))
    depth = _depth(mask)
    distance = ndimage.distance_transform_edt(~mask)
    distance[distance > max(1.0, sampling.negative_outer * scale)] = 0
    for label, room, (number, step, margin) in zip((1, 0), (depth, distance), draws, strict=True):
        while 0 < room.max() <= margin:
            margin /= 2
        allowed = room > margin
        for _ in range(number):
            candidates = np.flatnonzero(allowed)
            if not len(candidates):
                break
            row, column = divmod(int(rng.choice(candidates)), mask.shape[1])
            clicks.append((column, row))
            labels.append(label)
            rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
            allowed &= (rows - row) ** 2 + (columns - column) ** 2 >= step**2
    return np.array(clicks, np.int64).reshape(-1, 2), np.array(labels, np.int64)


def plain_next_click(
    prediction: NDArray[np.bool_],
    target: NDArray[np.bool_],
    clicked: Points,
    rng: np.random.Generator,
) -> Click | None:
    """As `next_click`."""
    wrong = []
    for label, pixels in ((1, target & ~prediction), (0, prediction & ~target)):
        components, count = ndimage.label(pixels, EIGHT_NEIGHBOURS)
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        wrong += [(size, label, components, n) for n, size in enumerate(sizes, start=1)]
    free = np.ones(target.shape, bool)
    free[clicked[:, 1], clicked[:, 0]] = False
    for _, label, components, n in sorted(wrong, key=lambda each: -each[0]):
        depth = _depth(components == n) * free
        if depth.any():
            deepest = np.argwhere(depth == depth.max())[:, ::-1]
            return deepest[int(rng.integers(len(deepest)))], label
    return None


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(mask, 1))
    return depth[1:-1, 1:-1]
