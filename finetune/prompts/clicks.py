"""Simulated clicks: random ones to start with, then corrections of a prediction.

A click is (x, y), the integer column and row of a pixel of the image given, with label 1 on the
object and 0 on the background. Distances run between pixel centres, in pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from finetune.prompts.distance import exact_distance

Points = NDArray[np.int64]
Labels = NDArray[np.int64]
Click = tuple[Points, int]
Crop = tuple[slice, slice]

cv2.setNumThreads(1)  # a loader's worker would wait for threads that no fork carries over


@dataclass(frozen=True)
class ClickSampling:
    """Random clicks of Lin et al. 2020 (FCA-Net, after Xu et al. 2016, Deep Interactive Object
    Selection). All distances are for an image whose longest side is `reference_side`, and scale in
    proportion with the longest side of others."""

    max_positive: int = 10
    """Largest number of clicks on the object; the number is uniform in 1..max_positive."""
    positive_steps: tuple[float, ...] = (7.0, 10.0, 20.0)
    """Least distance between two clicks on the object: one of these, drawn for each mask."""
    positive_margins: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    """Clicks on the object keep farther than one of these from its boundary."""
    max_negative: int = 10
    """Largest number of clicks on the background; the number is uniform in 0..max_negative."""
    negative_steps: tuple[float, ...] = (10.0, 15.0, 25.0)
    """Least distance between two clicks on the background."""
    negative_margins: tuple[float, ...] = (15.0, 40.0, 60.0)
    """Clicks on the background keep farther than one of these from the object."""
    negative_outer: float = 80.0
    """Clicks on the background are no farther than this from the object."""
    reference_side: float = 512.0
    """Longest side, in pixels, of the images the distances are meant for."""

    def __post_init__(self) -> None:
        if self.max_positive < 1 or self.max_negative < 0:
            raise UserError("max_positive must be at least 1 and max_negative at least 0")
        steps = (*self.positive_steps, *self.negative_steps)
        if not self.positive_steps or not self.negative_steps or min(steps) <= 0:
            raise UserError("positive_steps and negative_steps must list positive distances")
        margins = (*self.positive_margins, *self.negative_margins)
        if not self.positive_margins or not self.negative_margins or min(margins) < 0:
            raise UserError("positive_margins and negative_margins must list distances from 0")
        if self.negative_outer <= 0 or self.reference_side <= 0:
            raise UserError("negative_outer and reference_side must be positive")


def random_clicks(
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    sampling: ClickSampling | None = None,
    valid: NDArray[np.bool_] | None = None,
) -> tuple[Points, Labels]:
    """Clicks as a user might place them before seeing any prediction.

    Each click is drawn uniformly from the pixels still allowed: on the object farther than a
    margin from its boundary (the image border counts as boundary), on the background farther than
    a margin from the object and within `negative_outer` of it; and at least a step from the clicks
    of the same label drawn before. There are fewer clicks than drawn for where no pixel is left.

    A margin that leaves no pixel is halved until one is left, and the outer distance is at least
    one pixel, so small objects and images have their clicks. An empty mask gets 1..max_negative
    negative clicks (one if max_negative is 0) anywhere in the image; a full one positive only.

    Args:
        mask: (H, W) bool, the object.
        rng: Source of all choices; the same state gives the same clicks.
        sampling: Numbers and distances; by default those of the paper.
        valid: (H, W) bool, the pixels that negative clicks may fall on, by default all; the object
            lies inside them.

    Returns:
        points: (n, 2) int64 (x, y), positive ones first, no pixel twice, n >= 1.
        labels: (n,) int64, 1 or 0.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or mask.size == 0:
        raise ValueError(f"expected a bool mask (H, W), got {mask.dtype} {mask.shape}")
    sampling = sampling or ClickSampling()
    valid = np.ones_like(mask) if valid is None else valid
    scale = max(mask.shape) / sampling.reference_side
    positive_number = int(rng.integers(1, sampling.max_positive + 1))
    positive_step = rng.choice(sampling.positive_steps) * scale
    positive_margin = rng.choice(sampling.positive_margins) * scale
    negative_number = int(rng.integers(0, sampling.max_negative + 1))
    negative_step = rng.choice(sampling.negative_steps) * scale
    negative_margin = rng.choice(sampling.negative_margins) * scale
    outer = max(1.0, sampling.negative_outer * scale)

    crop = _bounding_box(mask)
    if crop is None:
        positive = np.empty((0, 2), np.int64)
        negative = _spread(~mask & valid, max(1, negative_number), negative_step, rng)
    else:
        depth = _depth(mask[crop])
        allowed = depth > _relaxed(positive_margin, depth.max())
        positive = _spread(allowed, positive_number, positive_step, rng) + _corner(crop)
        ring = _grow(crop, int(np.ceil(outer)), mask.shape)
        distance = exact_distance(~mask[ring])
        distance[(distance > outer) | ~valid[ring]] = 0
        allowed = distance > _relaxed(negative_margin, distance.max())
        negative = _spread(allowed, negative_number, negative_step, rng) + _corner(ring)
    points = np.concatenate([positive, negative])
    labels = np.repeat(np.array([1, 0]), [len(positive), len(negative)])
    return points, labels


def next_click(
    prediction: NDArray[np.bool_],
    target: NDArray[np.bool_],
    clicked: Points,
    rng: np.random.Generator | None = None,
) -> Click | None:
    """The next correcting click in training (Mahadevan et al. 2018, ITIS).

    False negatives and false positives are split into 8-connected components. The click falls in
    the largest (by pixels; among equals false negatives first, then row-major order) at the pixel
    deepest inside it; the image border counts as boundary. Pixels clicked before are left out, and
    a component with none left gives way to the next largest.

    Args:
        prediction: (H, W) bool.
        target: (H, W) bool.
        clicked: (n, 2) integer (x, y), the clicks placed before; n may be 0.
        rng: Chooses among equally deep pixels; without one, the first in row-major order.

    Returns:
        ((2,) int64 (x, y), label), the label being the truth at that pixel, or None if no wrong
        pixel is left to click.
    """
    clicked_mask = _clicked_mask(prediction, target, clicked)
    area = _bounding_box(prediction ^ target)
    if area is None:
        return None
    truth, guess, free = target[area], prediction[area], ~clicked_mask[area]
    kinds = [_components(truth & ~guess), _components(guess & ~truth)]
    missed = len(kinds[0].sizes)
    sizes = np.concatenate([kind.sizes for kind in kinds])
    while (largest := sizes.max(initial=0)) > 0:
        equal = np.flatnonzero(sizes == largest).tolist()
        label = int(equal[0] < missed)  # among equals one that was missed
        kind, before = (kinds[0], 0) if label else (kinds[1], missed)
        places = [n - before for n in equal if (n < missed) == bool(label)]
        place = min(places, key=kind.first) if len(places) > 1 else places[0]
        crop, component = kind.component(place)
        sizes[place + before] = 0
        if not (component & free[crop]).any():
            continue
        depth = _depth(component) * free[crop]
        deepest = _points(depth == depth.max()) + _corner(crop) + _corner(area)
        choice = 0 if rng is None else int(rng.integers(len(deepest)))
        return deepest[choice], label
    return None


def evaluation_click(
    prediction: NDArray[np.bool_], target: NDArray[np.bool_], clicked: Points
) -> Click | None:
    """The next correcting click in evaluation, with nothing left to chance (f-BRS, RITM).

    The pixel deepest inside the false negatives or inside the false positives, whichever is
    deeper (equal depth: the false positives, as RITM does); the first in row-major order among
    equals. Depth is the distance to the nearest pixel that is not the same kind of error, the image
    border included. Pixels clicked before are left out.

    Arguments and result are as in `next_click`.
    """
    clicked_mask = _clicked_mask(prediction, target, clicked)
    best: Click | None = None
    best_depth = 0.0
    for error, label in ((prediction & ~target, 0), (target & ~prediction, 1)):
        crop = _bounding_box(error)
        if crop is None:
            continue
        depth = _depth(error[crop]) * ~clicked_mask[crop]
        if depth.max() > best_depth:
            best_depth = depth.max()
            best = _points(depth == best_depth)[0] + _corner(crop), label
    return best


def _spread(
    allowed: NDArray[np.bool_], number: int, step: float, rng: np.random.Generator
) -> Points:
    """Up to `number` points (n, 2) of the allowed pixels, each at least `step` from the others."""
    left = allowed.copy()
    candidates = np.flatnonzero(left)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < number and candidates.size:
        row, column = divmod(int(rng.choice(candidates)), left.shape[1])
        chosen.append((column, row))
        reach = int(step)
        top, start = max(0, row - reach), max(0, column - reach)
        around = left[top : row + reach + 1, start : column + reach + 1]
        rows, columns = np.ogrid[: around.shape[0], : around.shape[1]]
        # The pixel itself is at distance 0 < step, so it cannot be chosen again.
        around &= (rows + top - row) ** 2 + (columns + start - column) ** 2 >= step**2
        candidates = candidates[left.ravel()[candidates]]
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def _relaxed(margin: float, largest: float) -> float:
    """The margin, halved until `largest` exceeds it; as it is if `largest` is 0 (no pixel)."""
    while 0 < largest <= margin:
        margin /= 2
    return margin


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance (H, W) of each pixel in the mask to the nearest outside it; 0 outside.

    What lies beyond the array is outside, so a crop to the mask's bounding box gives the same
    depths as the whole image.
    """
    return exact_distance(np.pad(mask, 1))[1:-1, 1:-1]


class _Components(NamedTuple):
    """The 8-connected components of a mask."""

    labels: NDArray[np.int32]
    boxes: NDArray[np.int32]
    """(n, 4) left, top, width, height."""
    sizes: NDArray[np.int32]
    """(n,) pixels."""

    def component(self, index: int) -> tuple[Crop, NDArray[np.bool_]]:
        """The bounding box of one, and its pixels in it."""
        left, top, width, height = self.boxes[index].tolist()
        crop = (slice(top, top + height), slice(left, left + width))
        return crop, self.labels[crop] == index + 1

    def first(self, index: int) -> tuple[int, int]:
        """(row, column) of the first pixel of one in row-major order."""
        (rows, columns), component = self.component(index)
        return rows.start, columns.start + int(component[0].argmax())


def _components(mask: NDArray[np.bool_]) -> _Components:
    found = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    labels, stats = (np.asarray(each, dtype=np.int32) for each in found[1:3])
    return _Components(labels, stats[1:, : cv2.CC_STAT_AREA], stats[1:, cv2.CC_STAT_AREA])


def _bounding_box(mask: NDArray[np.bool_]) -> Crop | None:
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _grow(crop: Crop, pixels: int, shape: tuple[int, ...]) -> Crop:
    """The crop, `pixels` larger on each side as far as the image of `shape` goes."""
    rows, columns = (
        slice(max(0, side.start - pixels), min(length, side.stop + pixels))
        for side, length in zip(crop, shape, strict=True)
    )
    return rows, columns


def _corner(crop: Crop) -> Points:
    """(2,) int64 (x, y) of a crop's first pixel."""
    return np.array([crop[1].start, crop[0].start], dtype=np.int64)


def _points(mask: NDArray[np.bool_]) -> Points:
    """(n, 2) int64 (x, y) of the true pixels, in row-major order."""
    return np.argwhere(mask)[:, ::-1]


def _clicked_mask(
    prediction: NDArray[np.bool_], target: NDArray[np.bool_], clicked: Points
) -> NDArray[np.bool_]:
    """(H, W) bool, True where a click was placed. Also checks the arguments of the click rules."""
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} must be (H, W)")
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise ValueError(f"expected bool masks, got {prediction.dtype} and {target.dtype}")
    mask = np.zeros(target.shape, dtype=bool)
    points = np.asarray(clicked, dtype=np.int64).reshape(-1, 2)
    if (points < 0).any() or (points >= target.shape[::-1]).any():
        raise ValueError(f"a click lies outside the image (height, width) {target.shape}")
    mask[points[:, 1], points[:, 0]] = True
    return mask
