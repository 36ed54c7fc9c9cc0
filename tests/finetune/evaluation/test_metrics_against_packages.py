"""HD95 and NSD are those of DeepMind's surface-distance; `monai` is that of MONAI."""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from finetune.evaluation.metrics import hd95, nsd
from finetune.evaluation.surface import patch_sizes

SPACINGS = {
    2: [(1.0, 1.0), (0.5, 0.5), (0.7, 1.9), (4.0, 0.3)],
    3: [(1.0, 1.0, 1.0), (5.0, 0.8, 0.8), (3.0, 0.8, 1.3), (0.4, 2.5, 1.1)],
}


def random_masks(rng: np.random.Generator, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise or blobs at any density, cut off by the border as it comes; neither is empty."""
    while True:
        shape = rng.integers(1, 14 if dims == 2 else 9, dims)
        kind = rng.choice(["noise", "blobs", "alike"])
        fields = rng.random((2, *shape))
        if kind != "noise":
            fields = np.stack([gaussian_filter(field, rng.uniform(0.5, 2)) for field in fields])
        if kind == "alike":
            fields[1] = 0.9 * fields[0] + 0.1 * fields[1]
        one, other = (f > np.quantile(f, rng.uniform(0, 0.95)) for f in fields)
        if one.any() and other.any():
            return one, other


def degenerate(dims: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Single pixels, full masks, one slice, one line, pixels that meet only at a corner."""
    shape = (6, 7) if dims == 2 else (5, 6, 7)
    full, pixel, corner, diagonal, slab = (np.zeros(shape, bool) for _ in range(5))
    full[:] = True
    pixel[(2,) * dims] = True
    corner[(0,) * dims] = True
    for index in range(4):
        diagonal[(index,) * dims] = True
    slab[2] = True
    line = np.zeros((1,) * (dims - 1) + (9,), bool)
    line[..., 2:5] = True
    for one in (full, pixel, corner, diagonal, slab):
        yield from ((one, other) for other in (full, pixel, corner, diagonal, slab))
    yield np.ones_like(line), line
    yield line, line[..., ::-1]
    yield np.ones((1,) * dims, bool), np.ones((1,) * dims, bool)
    if dims == 3:  # pixels that meet only along an edge
        staircase = np.zeros(shape, bool)
        for index in range(4):
            staircase[1, index, index] = staircase[2, index, index + 1] = True
        yield from ((staircase, diagonal), (staircase[1:2], diagonal[1:2]))


def masks(dims: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    rng = np.random.default_rng(dims)
    for pair in degenerate(dims):
        yield from ((*pair, spacing) for spacing in SPACINGS[dims])
    for index in range(count):
        spacing = SPACINGS[dims][index % 4] if index % 2 else tuple(rng.uniform(0.2, 5, dims))
        yield (*random_masks(rng, dims), spacing)


@pytest.mark.parametrize("dims", [2, 3])
def test_they_are_those_of_surface_distance(dims):
    compared = 0
    for prediction, target, spacing in masks(dims, 200):
        theirs = surface_distance.compute_surface_distances(target, prediction, spacing)
        for percentile in (95, 50):
            expected = surface_distance.compute_robust_hausdorff(theirs, percentile)
            assert hd95(prediction, target, spacing, percentile) == pytest.approx(
                expected, abs=1e-6
            )
        for tolerance in (0.0, 0.8765, 2.3456):
            expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert nsd(prediction, target, spacing, tolerance) == pytest.approx(expected, abs=1e-6)
        compared += 1
    assert compared > 300


@pytest.mark.parametrize("dims", [2, 3])
def test_a_missed_object_is_scored_as_by_surface_distance(dims, monkeypatch):
    monkeypatch.setattr(np, "Inf", math.inf, raising=False)  # its name in NumPy 1
    empty, full = np.zeros((4,) * dims, bool), np.ones((4,) * dims, bool)
    for prediction, target in ((empty, full), (full, empty)):
        theirs = surface_distance.compute_surface_distances(target, prediction, (1,) * dims)
        expected = surface_distance.compute_robust_hausdorff(theirs, 95)
        assert hd95(prediction, target, (1,) * dims) == expected == math.inf
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, 1)
        assert nsd(prediction, target, (1,) * dims) == expected == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_monai_is_that_of_monai(dims):
    compared = 0
    for prediction, target, spacing in islice(masks(dims, 60), 0, None, 2):
        pair = [torch.tensor(mask.copy())[None, None] for mask in (prediction, target)]
        expected = compute_hausdorff_distance(
            *pair, include_background=True, percentile=95, spacing=spacing
        )
        found = hd95(prediction, target, spacing, definition="monai")
        assert found == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
        compared += 1
    assert compared > 80
    one, none = pair[0], torch.zeros_like(pair[0])
    assert hd95(one[0, 0].numpy(), none[0, 0].numpy(), spacing, definition="monai") == math.inf


def test_areas_in_3d_are_those_of_marching_cubes():
    """Flat, slanted and cut-off pieces of surface, and a pixel by itself, by hand."""
    depth, height, width = spacing = (3.0, 0.8, 1.3)
    sizes = patch_sizes(spacing)
    corner = math.hypot(depth * height, depth * width, height * width) / 8
    assert sizes[0b00000001] == sizes[0b11111110] == pytest.approx(corner)
    assert sizes[0b00001111] == pytest.approx(height * width)
    assert sizes[0b00110011] == pytest.approx(depth * width)
    assert sizes[0b01010101] == pytest.approx(depth * height)
    assert sizes[0b00000011] == pytest.approx(width * math.hypot(depth, height) / 2)
    assert sizes[0b10000001] == pytest.approx(2 * corner)
    assert np.isnan(sizes[[0, 255]]).all()
    assert sizes[1:-1] == pytest.approx(sizes[1:-1][::-1])  # of a mask and of its background
