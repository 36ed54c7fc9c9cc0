"""Corrections at a quarter of the resolution follow the same rule, and are true to every pixel."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from finetune.prompts.clicks import next_click
from finetune.prompts.corrections import Corrections

BLOCK, SIDE = 4, 24
NO_CLICKS = (np.empty((0, 2), np.int64), np.empty(0, np.int64))


def smooth(rng: np.random.Generator, side: int, blur: float) -> np.ndarray:
    return gaussian_filter(rng.normal(size=(side, side)), blur) > 0


def enlarged(mask: np.ndarray) -> np.ndarray:
    return mask.repeat(BLOCK, 0).repeat(BLOCK, 1)


@pytest.mark.parametrize("seed", range(6))
def test_where_masks_are_made_of_blocks_the_rule_is_that_of_blocks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = smooth(rng, SIDE, 2), smooth(rng, SIDE, 2)
    everywhere = np.ones((1, BLOCK * SIDE, BLOCK * SIDE), bool)
    corrections = Corrections(enlarged(truth)[None], everywhere, SIDE)
    clicks, blocks = NO_CLICKS, NO_CLICKS[0]
    for number in range(8):
        (clicks,) = corrections.add(prediction[None], [clicks], np.random.default_rng(number))
        point, label = next_click(prediction, truth, blocks, np.random.default_rng(number))
        blocks = np.concatenate([blocks, point[None]])
        assert np.array_equal(clicks[0][-1], point * BLOCK + 1)  # of four central pixels the first
        assert clicks[1][-1] == label


@pytest.mark.parametrize("seed", range(6))
def test_every_click_is_on_a_pixel_that_has_its_label(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = BLOCK * SIDE
    area = np.zeros((2, frame, frame), bool)
    area[0, :, :70], area[1, :54] = True, True  # not whole blocks
    truths = np.stack([smooth(rng, frame, 3) for _ in range(2)]) & area
    corrections = Corrections(truths, area, SIDE)
    assert not corrections.thin.any()
    for mask in range(2):
        blocks = truths[mask].reshape(SIDE, BLOCK, SIDE, BLOCK)
        for (row, column), most in np.ndenumerate(corrections.small_truths[mask]):
            assert most == (blocks[row, :, column].sum() >= BLOCK**2 / 2)
    clicks = [NO_CLICKS, NO_CLICKS]
    for _ in range(25):
        clicks = corrections.add(np.stack([smooth(rng, SIDE, 1) for _ in range(2)]), clicks, rng)
    for mask, (points, labels) in enumerate(clicks):
        x, y = points.T
        assert len(points) == 25 == len({tuple(point) for point in points.tolist()})
        assert area[mask, y, x].all() and np.array_equal(truths[mask, y, x], labels == 1)
        assert set(labels.tolist()) == {0, 1}


def test_thin_objects_are_corrected_pixel_by_pixel() -> None:
    frame = BLOCK * SIDE
    area = np.ones((2, frame, frame), bool)
    truths = np.zeros((2, frame, frame), bool)
    truths[0, 41, 8:80] = True  # no block is half full
    truths[1, 20:60, 20:60] = True
    corrections = Corrections(truths, area, SIDE)
    assert corrections.thin.tolist() == [True, False]
    nothing = np.zeros((2, SIDE, SIDE), bool)
    (line, square) = corrections.add(nothing, [NO_CLICKS] * 2, np.random.default_rng(0))
    assert line[0][0, 1] == 41 and line[1].tolist() == [1]
    assert truths[1, square[0][0, 1], square[0][0, 0]] and square[1].tolist() == [1]
    all_right = corrections.small_truths.copy()
    all_right[0] = False
    assert corrections.add(all_right, [NO_CLICKS] * 2, np.random.default_rng(0))[1] is NO_CLICKS


def test_truths_stay_when_the_batch_is_handed_over():
    """A loader's worker moves tensors to shared memory, and what showed theirs showed anything."""
    masks = torch.rand(2, 16, 16) > 0.5
    expected = masks.numpy().copy()
    corrections = Corrections(masks.numpy(), masks.numpy(), 4)
    masks.share_memory_()
    masks.zero_()
    for kept in (corrections.truths, corrections.area):
        assert np.array_equal(kept, expected) and not np.shares_memory(kept, masks.numpy())
