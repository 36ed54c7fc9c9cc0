"""Pixels in colours as label maps: which colour stands for which target, and what fits none."""

from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.common.errors import UserError
from data_prep.records import Unreadable

Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""

BACKGROUND = "background"
"""Name of the colour that is no target; black unless it is given."""
MAX_TARGETS = 255
"""Targets of an 8-bit label map."""

EDGE_REACH = 4
"""Pixels from a soft edge to the colours that meet there; JPEG blurs colours so far."""
EDGE_MARGIN = 2
"""How many tolerances a pixel of an edge may lie outside the colours that meet there, channel by
channel; JPEG overshoots at edges."""
MAX_STRAY = 0.002
"""Share of a mask's pixels that may be neither near one of its colours nor of an edge."""

LISTED = 5
"""Colours that a message lists, at most."""
SAME = 32
"""Largest difference of a channel of what counts as one colour in such a list."""


def parse_colours(colours: Mapping[str, Sequence[int] | str]) -> dict[str, Colour]:
    """Colours as they are given, [r, g, b] or '#rrggbb', by name; `background` comes first.

    Raises:
        UserError: Not a colour, no name, no target, too many, or two of the same colour.
    """
    named = {BACKGROUND: (0, 0, 0)} | {name: _colour(name, v) for name, v in colours.items()}
    if not 1 < len(named) <= MAX_TARGETS + 1:
        raise UserError(f"colors: {len(named) - 1} targets; expected 1 to {MAX_TARGETS}")
    names: dict[Colour, str] = {}
    for name, colour in named.items():
        if colour in names:
            raise UserError(f"colors: {names[colour]} and {name} are both {list(colour)}")
        names[colour] = name
    return named


def _colour(name: str, given: Sequence[int] | str) -> Colour:
    if not name.strip():
        raise UserError(f"colors: {given!r} has no name; give it one, such as tumour")
    values = given
    if isinstance(given, str):
        digits = given.removeprefix("#")
        try:
            values = list(bytes.fromhex(digits)) if given != digits else ()
        except ValueError:
            values = ()
    if len(values) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in values):
        raise UserError(
            f"colors: {name} is {given!r}; expected [red, green, blue] from 0 to 255, or '#rrggbb'"
        )
    return (int(values[0]), int(values[1]), int(values[2]))


def nearest_colour(pixels: np.ndarray, colours: Sequence[Colour], tolerance: int) -> np.ndarray:
    """Index of the colour of each pixel.

    A pixel has a colour if no channel differs by more than the tolerance; of several the nearest.
    Where two colours meet, a pixel between them takes the nearer one of the two. A few others, such
    as compression leaves, take the nearest colour.

    Args:
        pixels: (H, W, 3) uint8.
        colours: At most 256.

    Returns:
        (H, W) uint8.

    Raises:
        Unreadable: More than `MAX_STRAY` of the pixels have another colour.
    """
    values = pixels.astype(np.int16)
    nearest = np.full(values.shape[:2], 256, np.int16)  # largest difference of a channel
    index = np.zeros(values.shape[:2], np.uint8)
    for number, colour in enumerate(colours):
        distance = _distance(values, colour)
        index[distance < nearest] = number
        np.minimum(nearest, distance, out=nearest)
    off = nearest > tolerance
    if not off.any():
        return index
    between, meeting = _edges(values, np.where(off, -1, index.astype(np.int16)), colours, tolerance)
    stray = off.copy()
    stray[off] = ~between
    if (share := stray.mean()) > MAX_STRAY:
        example = common_colours(pixels[stray], 1)[0][0]
        raise Unreadable(
            f"{100 * share:.3g} % of its mask has other colours than those given, such as"
            f" {list(example)}; name them in --colors, or give a larger --color_tolerance"
            f" than {tolerance}"
        )
    index[off] = np.where(between, meeting, index[off])
    return index


def _edges(
    values: np.ndarray, known: np.ndarray, colours: Sequence[Colour], tolerance: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the pixels without a colour lie between colours that meet there.

    Args:
        values: (H, W, 3) int16.
        known: (H, W) int16 index of each pixel's colour, -1 where it has none.

    Returns:
        Of the N pixels that have none: (N,) bool whether it does, and (N,) uint8 the nearest of
        those colours.
    """
    from scipy.ndimage import maximum_filter  # grey masks need not wait for it

    off = known < 0
    pixels = values[off]
    low, high = np.full_like(pixels, 256), np.full_like(pixels, -1)
    nearest = np.full(len(pixels), 256, np.int16)
    index = np.zeros(len(pixels), np.uint8)
    for number, colour in enumerate(colours):
        near = maximum_filter(known == number, size=2 * EDGE_REACH + 1)[off]
        low[near] = np.minimum(low[near], colour)
        high[near] = np.maximum(high[near], colour)
        distance = np.where(near, _distance(pixels, colour), 256)
        index[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    margin = EDGE_MARGIN * tolerance
    several = (low < high).any(axis=1)
    inside = (pixels >= low - margin) & (pixels <= high + margin)  # (N, 3)
    return np.logical_and(several, inside.all(axis=1)), index


def common_colours(pixels: np.ndarray, count: int = LISTED) -> list[tuple[Colour, float]]:
    """The colours that most pixels have, and their shares.

    What compression made of a colour counts with it.

    Args:
        pixels: (..., 3) uint8.
    """
    packed = pixels.reshape(-1, 3).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    found, numbers = np.unique(packed, return_counts=True)
    values = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.int16)
    colours: list[tuple[Colour, float]] = []
    while len(found) and len(colours) < count:
        red, green, blue = values[numbers.argmax()].tolist()
        alike = _distance(values, (red, green, blue)) <= SAME
        colours.append(((red, green, blue), float(numbers[alike].sum() / len(packed))))
        found, numbers, values = found[~alike], numbers[~alike], values[~alike]
    return colours


def describe_colours(pixels: np.ndarray) -> str:
    """The most frequent colours of (..., 3) uint8 pixels and their shares, for a message."""
    return ", ".join(f"{list(c)} in {100 * share:.3g} %" for c, share in common_colours(pixels))


def _distance(values: np.ndarray, colour: Colour) -> np.ndarray:
    """(...): largest difference of a channel; `values` are (..., 3) int16."""
    return np.abs(values - np.array(colour, np.int16)).max(axis=-1)
