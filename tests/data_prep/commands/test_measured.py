"""Figures of info, against images of which they are known."""

import numpy as np

from data_prep.commands.measured import bars, measure
from data_prep.loader.dataset import Record


def record(image, mask=None, spacing=None):
    return Record("key", image, mask, {"spacing": spacing})


def test_histograms_of_both_depths_agree():
    values = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    shallow = measure([record(values)], {}).histogram
    deep = measure([record(values[..., 0].astype(np.uint16) * 257)], {}).histogram
    expected = [((values >= 8 * n) & (values < 8 * n + 8)).mean() for n in range(32)]
    assert np.allclose(shallow, expected)
    expected = [((values[..., 0] // 8) == n).mean() for n in range(32)]
    assert np.allclose(deep, expected)


def test_areas_count_the_records_that_hold_a_target():
    image = np.zeros((10, 10), np.uint8)
    masks = [np.zeros((10, 10), np.uint8) for _ in range(3)]
    masks[0][:2] = 1
    masks[0][2] = 2
    masks[1][0, :5] = 1
    labels = {"disc": [1, 2], "cup": [2], "never": [7]}
    measured = measure([record(image, mask) for mask in masks], labels)
    assert measured.areas == {"disc": [0.3, 0.05], "cup": [0.1]}
    lines = dict(measured.lines())
    assert lines["area disc"] == "5 to 30 %, median 18 %, in 2 records"
    assert lines["measured on"] == "3 records"
    assert "area never" not in lines


def test_spacing_of_slices_and_volumes_stays_apart():
    image = np.zeros((10, 10), np.uint8)
    spacings = [(1, 0.5), (2, 1.5), (2, 1), None, (5, 1, 1)]
    measured = measure([record(image, spacing=spacing) for spacing in spacings], {})
    assert [text for name, text in measured.lines() if name == "spacing"] == [
        "median 2 x 1 mm, 1 x 0.5 to 2 x 1.5, in 3 records",
        "median 5 x 1 x 1 mm, 5 x 1 x 1 to 5 x 1 x 1, in 1 records",
    ]


def test_bars():
    assert bars(np.array([0, 1, 2, 4, 8, 0.01])) == " ▁▂▄█▁"
    assert bars(np.zeros(3)) == "   "
