"""Boxes of masks, and the size of their noise."""

import numpy as np
import pytest

from finetune.prompts.boxes import box_of, boxes_of, jitter_box


def test_a_box_encloses_its_pixels_whole():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random(rng.integers(1, 30, 2)) < 0.05
        points = [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
        if not points:
            assert box_of(mask) is None
            continue
        xs, ys = zip(*points, strict=True)
        assert box_of(mask).tolist() == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
    assert box_of(np.zeros((3, 4), bool)) is None
    single = np.zeros((5, 8), bool)
    single[2, 6] = True
    assert box_of(single).tolist() == [6, 2, 7, 3]
    assert boxes_of(np.stack([single, single])).tolist() == [[6, 2, 7, 3]] * 2
    with pytest.raises(ValueError, match="1 of 2 masks are empty"):
        boxes_of(np.stack([single, np.zeros_like(single)]))


def test_noise_is_a_share_of_each_side():
    box = np.array([300.0, 400.0, 400.0, 440.0])  # 100 x 40 pixels
    rng = np.random.default_rng(1)
    noise = np.stack([jitter_box(box, rng, (1024, 1024)) for _ in range(4000)]) - box
    assert abs(noise.mean(axis=0)).max() < 0.6
    # x: deviation 10, cut at 20 (2 deviations) leaves 0.9594; y: deviation 4, cut at 5, leaves all.
    assert noise.std(axis=0) == pytest.approx([9.594, 4.0, 9.594, 4.0], rel=0.04)
    assert abs(noise).max(axis=0)[::2] == pytest.approx([20, 20])


def test_bound_scales_with_the_image():
    box = np.array([20.0, 20.0, 240.0, 220.0])
    rng = np.random.default_rng(2)
    noise = np.stack([jitter_box(box, rng, (240, 256)) for _ in range(500)]) - box
    assert abs(noise).max() == pytest.approx(5.0)
    assert jitter_box(box, rng, (240, 256), ratio=0.0).tolist() == box.tolist()


def test_more_noise_moves_a_box_further():
    """The bound grows with it: otherwise 0.3 of an object this large would be as 0.1."""
    box = np.array([60.0, 60.0, 160.0, 160.0])
    spreads = []
    for ratio in (0.1, 0.2, 0.3):
        rng = np.random.default_rng(0)
        spreads.append(np.std([jitter_box(box, rng, (224, 224), ratio) - box for _ in range(500)]))
    assert spreads == pytest.approx([spreads[0], 2 * spreads[0], 3 * spreads[0]])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 48)])
def test_box_stays_in_the_image_and_upright(size):
    rng = np.random.default_rng(3)
    for _ in range(300):
        xs = np.sort(rng.integers(0, size[1], 2))
        ys = np.sort(rng.integers(0, size[0], 2))
        box = [xs[0], ys[0], xs[1], ys[1]]
        x0, y0, x1, y1 = jitter_box(box, rng, size, ratio=2.0, max_pixels=1000)
        assert 0 <= x0 <= x1 <= size[1] and 0 <= y0 <= y1 <= size[0]


def test_same_seed_same_box():
    boxes = [jitter_box([3, 4, 30, 20], np.random.default_rng(s), (64, 64)) for s in (1, 1, 2)]
    assert boxes[0].tolist() == boxes[1].tolist() != boxes[2].tolist()
