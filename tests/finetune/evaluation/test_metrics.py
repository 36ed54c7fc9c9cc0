"""Metrics against literal versions: loops over corners and over pairs of them."""

import itertools
import math

import numpy as np
import pytest

from finetune.evaluation.metrics import _surface_elements, dice, hd95, iou, nsd

SPACINGS = {2: (0.7, 1.9), 3: (3.0, 0.8, 1.3)}


def literal_surface(mask, spacing):
    """{corner position in mm: size}, corner by corner from its 2^n pixels."""
    surface = {}
    dims = mask.ndim
    around = list(itertools.product((-1, 0), repeat=dims))
    for corner in itertools.product(*(range(n + 1) for n in mask.shape)):
        values = []
        for offset in around:
            index = tuple(c + o for c, o in zip(corner, offset, strict=True))
            inside = all(0 <= i < n for i, n in zip(index, mask.shape, strict=True))
            values.append(bool(inside and mask[index]))
        if all(values) or not any(values):
            continue
        gradient = []
        for axis in range(dims):
            after = [v for v, o in zip(values, around, strict=True) if o[axis] == 0]
            before = [v for v, o in zip(values, around, strict=True) if o[axis] == -1]
            gradient.append((np.mean(after) - np.mean(before)) / spacing[axis])
        position = tuple(c * s for c, s in zip(corner, spacing, strict=True))
        surface[position] = math.hypot(*gradient) * math.prod(spacing)
    return surface


def literal_distances(prediction, target, spacing):
    first, second = literal_surface(prediction, spacing), literal_surface(target, spacing)
    for these, those in ((first, second), (second, first)):
        yield [(min(math.dist(p, q) for q in those), size) for p, size in these.items()]


def literal_hd95(prediction, target, spacing):
    directed = []
    for pairs in literal_distances(prediction, target, spacing):
        total, passed = sum(size for _, size in pairs), 0.0
        for distance, size in sorted(pairs):
            passed += size
            if passed >= 0.95 * total * (1 - 1e-12):
                directed.append(distance)
                break
    return max(directed)


def literal_nsd(prediction, target, spacing, tolerance):
    pairs = [p for side in literal_distances(prediction, target, spacing) for p in side]
    return sum(size for d, size in pairs if d <= tolerance) / sum(size for _, size in pairs)


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


@pytest.mark.parametrize("dims", [2, 3])
def test_surface_metrics_equal_the_literal_version(dims):
    rng = np.random.default_rng(dims)
    compared = 0
    for _ in range(25):
        prediction, target = random_pair(rng, dims)
        if not prediction.any() or not target.any():
            continue
        spacing = SPACINGS[dims]
        expected = literal_hd95(prediction, target, spacing)
        assert hd95(prediction, target, spacing) == pytest.approx(expected)
        for tolerance in (0.0, 0.75, 2.0):
            expected = literal_nsd(prediction, target, spacing, tolerance)
            assert nsd(prediction, target, spacing, tolerance) == pytest.approx(expected)
        compared += 1
    assert compared >= 15


def test_sizes_in_2d_are_contour_lengths():
    """A corner with one or three pixels cuts half a diagonal, one with a straight edge a side."""
    height, width = 0.7, 1.9
    square = np.ones((3, 4), bool)
    half_diagonal = math.hypot(height, width) / 2
    expected = 4 * half_diagonal + 2 * 2 * height + 2 * 3 * width
    assert np.nansum(_surface_elements(square, (height, width))) == pytest.approx(expected)


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
    spacing = SPACINGS[3]
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
    with pytest.raises(ValueError, match="tolerance"):
        nsd(mask, mask, (1, 1), -1.0)
