"""Contours to pixels."""

import numpy as np
import pytest
from matplotlib.path import Path

from data_prep.readers.rtstruct import fill


@pytest.mark.parametrize("seed", range(5))
def test_filled_polygons_hold_the_centres_that_matplotlib_finds_in_them(seed):
    generator = np.random.default_rng(seed)
    polygons = []
    for _ in range(3):  # stars that overlap each other and leave the picture
        angles = np.sort(generator.uniform(0, 2 * np.pi, 40))
        radii = generator.uniform(4, 22, 40)
        centre = generator.uniform(5, 30, 2)
        polygons.append(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
    rows, columns = np.mgrid[:36, :31]
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = [Path(polygon).contains_points(centres).reshape(36, 31) for polygon in polygons]
    assert np.array_equal(fill(polygons, (36, 31)), np.logical_xor.reduce(inside))


def test_polygons_that_share_an_edge_share_no_pixel():
    left, right = [np.array([(a, 1), (b, 1), (b, 5), (a, 5)], float) for a, b in ((1, 4), (4, 7))]
    first, second = fill([left], (8, 9)), fill([right], (8, 9))
    assert first.sum() == second.sum() == 12
    assert not (first & second).any()
    assert np.array_equal(fill([left, right], (8, 9)), first | second)
