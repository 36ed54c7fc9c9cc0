"""RTSTRUCT labels: contours filled on the voxels of their series."""

import numpy as np
import pytest

from data_prep.records import Unreadable

SHAPE = (6, 20, 18)


def square(low, high, depth):
    return [(low, low, depth), (high, low, depth), (high, high, depth), (low, high, depth)]


@pytest.mark.parametrize("geometry", ["straight", "oblique"], indirect=True)
def test_contours_are_filled_with_their_holes(
    geometry, tmp_path, make_series, volume, in_order, affine_of, write_rtstruct, read_one
):
    paths = make_series(tmp_path / "ct", volume(), **geometry)
    outer, hole = square(2.5, 12.5, 2), square(5.5, 8.5, 2)
    keyhole = [*square(1.6, 9.4, 4), (1.6, 1.6, 4), *square(3.5, 6.5, 4)[::-1]]
    keyhole += [keyhole[5], (1.6, 1.6, 4)]
    write_rtstruct(
        tmp_path / "rt",
        paths,
        [[outer, hole], [keyhole, [(3, 3, 1)]], [square(0.5, 3.5, 2)]],
        ["Liver", "GTV", "Skin"],
    )
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 3:13, 3:13] |= 2
    expected[2, 6:9, 6:9] &= ~np.uint8(2)
    expected[4, 2:10, 2:10] |= 1
    expected[4, 4:7, 4:7] &= ~np.uint8(1)
    mask = read_one(tmp_path, labels={"tumour": ["GTV*"], "liver": ["liver"]})
    assert np.array_equal(mask, in_order(expected, affine_of(paths)))


@pytest.mark.parametrize(
    "reason, contour",
    [
        ("do not lie in the slices", square(2, 9, 2.5)),
        ("do not lie in the slices", [(2, 2, 1), (9, 2, 1), (9, 9, 3)]),
        ("outside the series", square(2, 9, 7)),
    ],
)
def test_contours_off_the_slices_are_refused(
    reason, contour, tmp_path, make_series, volume, write_rtstruct, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    write_rtstruct(tmp_path / "rt", paths, [[contour]], ["liver"])
    with pytest.raises(Unreadable, match=reason):
        read_one(tmp_path)
