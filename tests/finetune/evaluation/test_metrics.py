"""Metrics of masks whose overlap and distance are known."""

import math

import numpy as np
import pytest

from finetune.evaluation.metrics import dice, hd95, iou, nsd
from finetune.evaluation.surface import surface_elements


def random_pair(rng, dims):
    shape = rng.integers(1, 12 if dims == 2 else 7, dims)
    prediction, target = (rng.random(shape) < rng.choice([0.1, 0.4, 0.8]) for _ in range(2))
    return prediction, target


def test_overlap_equals_counting():
    rng = np.random.default_rng(0)
    for _ in range(50):
        prediction, target = random_pair(rng, rng.choice([2, 3]))
        first, second = (set(map(tuple, np.argwhere(m))) for m in (prediction, target))
        if first or second:
            expected = 2 * len(first & second) / (len(first) + len(second))
            assert dice(prediction, target) == pytest.approx(expected)
            expected = len(first & second) / len(first | second)
            assert iou(prediction, target) == pytest.approx(expected)


def test_sizes_in_2d_are_contour_lengths():
    """A corner with one or three pixels cuts half a diagonal, one with a straight edge a side."""
    height, width = 0.7, 1.9
    square = np.ones((3, 4), bool)
    half_diagonal = math.hypot(height, width) / 2
    expected = 4 * half_diagonal + 2 * 2 * height + 2 * 3 * width
    assert np.nansum(surface_elements(square, (height, width))) == pytest.approx(expected)


def test_known_distances_in_millimetres():
    """A slab moved by two slices of 3 mm: its flat faces are 6 mm apart."""
    target = np.zeros((12, 20, 20), bool)
    target[3:6] = True
    moved = np.roll(target, 2, axis=0)
    spacing = (3.0, 1.0, 1.0)
    assert hd95(moved, target, spacing) == pytest.approx(6.0)
    assert hd95(moved, target, (1.0, 1.0, 1.0)) == pytest.approx(2.0)
    assert nsd(moved, target, spacing, 6.0) == 1.0
    assert nsd(moved, target, spacing, 5.9) < 1.0
    assert nsd(np.roll(target, 3, 0)[:, :1, :1], target[:, :1, :1], (0.1, 1, 1), 0.3) == 1.0


def test_robust_distance_ignores_a_speck():
    target = np.zeros((60, 60), bool)
    target[10:40, 10:40] = True
    prediction = target.copy()
    prediction[55, 55] = True
    assert hd95(prediction, target, (1, 1)) == 0.0
    assert hd95(prediction, target, (1, 1), percentile=100) == pytest.approx(math.hypot(16, 16))


def test_same_mask_is_perfect_and_both_orders_agree():
    rng = np.random.default_rng(5)
    first, second = rng.random((2, 9, 8, 7)) < 0.5
    spacing = (3.0, 0.8, 1.3)
    assert (dice(first, first), iou(first, first)) == (1.0, 1.0)
    assert (hd95(first, first, spacing), nsd(first, first, spacing, 0.0)) == (0.0, 1.0)
    assert hd95(first, second, spacing) == hd95(second, first, spacing)
    assert nsd(first, second, spacing) == pytest.approx(nsd(second, first, spacing))


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5)])
def test_empty_masks(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.0,) * len(shape)
    assert (dice(empty, empty), iou(empty, empty)) == (1.0, 1.0)
    assert (hd95(empty, empty, spacing), nsd(empty, empty, spacing)) == (0.0, 1.0)
    for first, second in ((empty, full), (full, empty)):
        assert (dice(first, second), iou(first, second)) == (0.0, 0.0)
        assert (hd95(first, second, spacing), nsd(first, second, spacing)) == (math.inf, 0.0)


def test_bad_arguments_are_refused():
    mask = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match="bool"):
        dice(mask, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="shapes"):
        iou(mask, mask.T)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="spacing"):
            hd95(mask, mask, spacing)
    with pytest.raises(ValueError, match="expected one of surface, monai"):
        hd95(mask, mask, (1, 1), definition="medpy")
    with pytest.raises(ValueError, match="tolerance"):
        nsd(mask, mask, (1, 1), -1.0)
