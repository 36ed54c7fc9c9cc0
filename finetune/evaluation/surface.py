"""Where the surface of a mask runs, and how large each piece of it is.

The 2^n pixels around a pixel corner are a cell of marching squares (2D) or marching cubes (3D,
Lorensen and Cline 1987), and their values are its code. The surface crosses an edge of the cell
half way between a pixel of the object and one of the background, and the crossings are joined to
segments or polygons. The sizes of these are those of DeepMind's surface-distance (Nikolov et al.
2021, arXiv 1809.04430); here they are computed from the geometry instead of stored in a table.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Point = tuple[float, ...]

RING = ((0, 0), (0, 1), (1, 1), (1, 0))
"""Pixels of a square of four, each beside the next one and the last one beside the first."""


def surface_elements(mask: NDArray[np.bool_], spacing: Sequence[float]) -> Floats:
    """Size of the surface at each pixel corner: mm in 2D, mm^2 in 3D; NaN where there is none.

    Args:
        mask: (H, W) or (D, H, W); beyond it is background.
        spacing: Millimetres from one pixel to the next along each axis.

    Returns:
        (H + 1, W + 1) or (D + 1, H + 1, W + 1).
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([length + 1 for length in mask.shape], np.uint8)
    for bit, offset in enumerate(product((0, 1), repeat=mask.ndim)):
        around = tuple(slice(o, o + n) for o, n in zip(offset, codes.shape, strict=True))
        codes |= padded[around] << bit
    return patch_sizes(spacing)[codes]


def patch_sizes(spacing: Sequence[float]) -> Floats:
    """Size of the surface in a cell, by the cell's code: (16,) lengths or (256,) areas.

    Bit i of a code is the value of pixel i, the last axis changing fastest. NaN for the two codes
    whose pixels are all alike.
    """
    if len(spacing) == 2:
        vectors, scale = _segment_vectors(), np.array(spacing)
    else:
        vectors, scale = _area_vectors(), np.prod(spacing) / np.array(spacing)
    sizes: Floats = np.sqrt(((vectors * scale) ** 2).sum(-1)).sum(-1)
    sizes[[0, -1]] = np.nan
    return sizes


@cache
def _segment_vectors() -> Floats:
    """(16, 2, 2): from end to end of each segment in a square; zero where there are fewer."""
    vectors = np.zeros((16, 2, 2))
    for code in range(16):
        for place, (start, end) in enumerate(_segments(_cell(code, 2), apart=True)):
            vectors[code, place] = np.subtract(end, start)
    return vectors


@cache
def _area_vectors() -> Floats:
    """(256, 4, 3): a normal of each triangle in a cube, as long as its area is large."""
    vectors = np.zeros((256, 4, 3))
    for code in range(256):
        found = [_largest_triangulation(each) for each in _polygons(_cell(code, 3))]
        if found:
            triangles = np.concatenate(found)
            vectors[code, : len(triangles)] = triangles
    return vectors


def _cell(code: int, dims: int) -> NDArray[np.bool_]:
    bits = [bool(code >> bit & 1) for bit in range(2**dims)]
    return np.array(bits).reshape((2,) * dims)


def _segments(square: NDArray[np.bool_], apart: bool) -> list[tuple[Point, Point]]:
    """The contour between the pixels (2, 2) of a square, as pairs of crossings.

    Args:
        apart: Which of the two values are kept apart where they lie on the two diagonals.
    """
    values = [bool(square[place]) for place in RING]
    crossings: dict[int, Point] = {}  # between pixel k - 1 and pixel k of the ring
    for k in range(4):
        if values[k] != values[k - 1]:
            (y, x), (v, u) = RING[k], RING[k - 1]
            crossings[k] = ((y + v) / 2, (x + u) / 2)
    if len(crossings) == 4:  # each pixel of the value is cut off by itself
        return [(crossings[k], crossings[(k + 1) % 4]) for k in range(4) if values[k] == apart]
    ends = list(crossings.values())
    return [(ends[0], ends[1])] if ends else []


def _polygons(cube: NDArray[np.bool_]) -> list[Floats]:
    """Closed polygons (k, 3) between the pixels (2, 2, 2) of a cube: their sides run in its faces.

    Where a face leaves it open, the pixels of the rarer value are kept apart.
    """
    apart = bool(cube.sum() <= 4)
    links: dict[Point, list[Point]] = {}
    for axis, side in product(range(3), (0, 1)):
        for segment in _segments(np.take(cube, [side], axis).squeeze(axis), apart):
            one, other = ((*end[:axis], float(side), *end[axis:]) for end in segment)
            links.setdefault(one, []).append(other)
            links.setdefault(other, []).append(one)
    polygons = []
    while links:  # every crossing has two links, one in each of two faces
        polygon = [next(iter(links))]
        while ahead := [point for point in links.pop(polygon[-1]) if point in links]:
            polygon.append(ahead[0])
        polygons.append(np.array(polygon))
    return polygons


def _largest_triangulation(polygon: Floats) -> Floats:
    """Area vectors (k - 2, 3) of the triangles into which a polygon (k, 3) is divided.

    Some polygons are not flat, so that their area depends on the division. The largest one (for
    cubic pixels) keeps the parts that are parallel to the pixels' faces.
    """
    if len(polygon) < 3:
        return np.zeros((0, 3))
    first, last = polygon[0], polygon[-1]
    divisions = []
    for k in range(1, len(polygon) - 1):
        triangle = np.cross(polygon[k] - first, last - first)[None] / 2
        sides = _largest_triangulation(polygon[: k + 1]), _largest_triangulation(polygon[k:])
        divisions.append(np.concatenate([triangle, *sides]))
    return max(divisions, key=lambda vectors: float(np.linalg.norm(vectors, axis=1).sum()))
