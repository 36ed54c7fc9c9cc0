"""Clicks against literal versions that look at every pixel and every pair of pixels."""

import math
from collections import Counter

import cv2
import numpy as np
import pytest

from data_prep.common.errors import UserError
from finetune.prompts.clicks import ClickSampling, evaluation_click, next_click, random_clicks

NO_CLICKS = np.empty((0, 2), np.int64)
SHAPES = [(1, 1), (1, 7), (9, 1), (3, 200), (40, 64), (64, 41)]


def blobs(shape, seed, keep=0.5):
    """A mask of smooth random regions."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0] // 6 + 1, shape[1] // 6 + 1)) < keep
    return np.kron(coarse, np.ones((6, 6), bool)).astype(bool)[: shape[0], : shape[1]]


def pixels(mask):
    return [(x, y) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]


def depth_at(region, x, y):
    """Distance from (x, y) to the nearest pixel outside the region, border included: literally."""
    height, width = region.shape
    outside = [
        (i, j)
        for j in range(-1, height + 1)
        for i in range(-1, width + 1)
        if not (0 <= i < width and 0 <= j < height and region[j, i])
    ]
    return min(math.dist((x, y), other) for other in outside)


def components(mask):
    """8-connected components as lists of (x, y), in row-major order of their first pixels."""
    left, found = set(pixels(mask)), []
    for start in pixels(mask):
        if start not in left:
            continue
        left.remove(start)
        queue, component = [start], []
        while queue:
            x, y = queue.pop()
            component.append((x, y))
            for near in [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    queue.append(near)
        found.append(component)
    return found


def deepest(region, points, clicked):
    """(depth, points of that depth in row-major order) among the unclicked points of a region."""
    free = sorted((p for p in points if p not in clicked), key=lambda p: (p[1], p[0]))
    depths = [depth_at(region, *p) for p in free]
    best = max(depths)
    return best, [p for p, depth in zip(free, depths, strict=True) if depth == best]


def literal_next(prediction, target, clicked):
    """(allowed points, label) of the next training click."""
    candidates = [(c, 1) for c in components(target & ~prediction)]
    candidates += [(c, 0) for c in components(prediction & ~target)]
    for component, label in sorted(candidates, key=lambda pair: -len(pair[0])):
        if set(component) - clicked:
            region = np.zeros_like(target)
            for x, y in component:
                region[y, x] = True
            return deepest(region, component, clicked)[1], label
    return None


def literal_evaluation(prediction, target, clicked):
    best = None
    for region, label in ((prediction & ~target, 0), (target & ~prediction, 1)):
        if set(pixels(region)) - clicked:
            depth, points = deepest(region, pixels(region), clicked)
            if best is None or depth > best[0]:
                best = depth, points[0], label
    return best and best[1:]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7, 1.0])
def test_random_clicks_lie_where_their_labels_say(shape, keep):
    for seed in range(30):
        mask = blobs(shape, seed, keep)
        points, labels = random_clicks(mask, np.random.default_rng(seed))
        assert points.shape == (len(labels), 2) and points.dtype == labels.dtype == np.int64
        assert (points >= 0).all() and (points < [shape[1], shape[0]]).all()
        assert len(set(map(tuple, points))) == len(points)
        assert (mask[points[:, 1], points[:, 0]] == labels).all()
        assert list(labels) == sorted(labels, reverse=True)
        positive, negative = (labels == 1).sum(), (labels == 0).sum()
        assert positive <= 10 and negative <= 10
        assert (positive >= 1) == mask.any()
        if not mask.any():
            assert negative >= 1


def test_random_clicks_keep_margins_and_steps():
    """Every drawn distance is kept, with the image's scale, against literal distances."""
    sampling = ClickSampling(
        positive_steps=(8.0,),
        positive_margins=(6.0,),
        negative_steps=(12.0,),
        negative_margins=(9.0,),
        negative_outer=30.0,
        reference_side=128.0,
    )
    scale = 64 / 128
    mask = np.zeros((48, 64), bool)
    mask[0:22, 20:50] = True  # meets the border: clicks must keep away from it as well
    several = 0
    for seed in range(60):
        points, labels = random_clicks(mask, np.random.default_rng(seed), sampling)
        for label, step in ((1, 8 * scale), (0, 12 * scale)):
            same_label = points[labels == label]
            pairs = [math.dist(a, b) for i, a in enumerate(same_label) for b in same_label[:i]]
            assert all(distance >= step for distance in pairs)
            several += len(pairs)
        for x, y in points[labels == 1]:
            assert depth_at(mask, x, y) > 6 * scale
        for x, y in points[labels == 0]:
            distance = min(math.dist((x, y), other) for other in pixels(mask))
            assert 9 * scale < distance <= 30 * scale
    assert several > 100


def test_random_clicks_reach_every_allowed_pixel_evenly():
    sampling = ClickSampling(
        max_positive=1, max_negative=0, positive_margins=(1.5,), reference_side=9.0
    )
    mask = np.ones((5, 9), bool)
    allowed = {p for p in pixels(mask) if depth_at(mask, *p) > 1.5}
    rng = np.random.default_rng(0)
    counts = Counter(tuple(random_clicks(mask, rng, sampling)[0][0]) for _ in range(4000))
    assert set(counts) == allowed and len(allowed) == 21
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_random_clicks_cover_the_whole_range_of_counts():
    mask = np.zeros((128, 128), bool)
    mask[26:101, 26:101] = True
    rng = np.random.default_rng(1)
    counts = [np.bincount(random_clicks(mask, rng)[1], minlength=2) for _ in range(250)]
    assert {positive for _, positive in counts} == set(range(1, 11))
    assert {negative for negative, _ in counts} == set(range(0, 11))


def test_margin_is_relaxed_for_what_is_too_small():
    """A 3 x 3 object in a large image: its centre is the only pixel deep enough after halving."""
    mask = np.zeros((512, 512), bool)
    mask[200:203, 300:303] = True
    for seed in range(20):
        points, labels = random_clicks(mask, np.random.default_rng(seed))
        assert points[labels == 1].tolist() == [[301, 201]]
    # One background pixel, nearer than any margin.
    mask = np.ones((64, 64), bool)
    mask[5, 7] = False
    negatives = [
        points[labels == 0].tolist()
        for points, labels in (random_clicks(mask, np.random.default_rng(s)) for s in range(20))
    ]
    assert [[7, 5]] in negatives and all(n in ([], [[7, 5]]) for n in negatives)


def test_margin_just_reached_and_tiny_outer_distance_still_give_clicks():
    mask = np.zeros((16, 16), bool)
    mask[4, 5] = True  # its depth is 1, the margin is 1
    sampling = ClickSampling(positive_margins=(1.0,), reference_side=16.0)
    points, labels = random_clicks(mask, np.random.default_rng(0), sampling)
    assert points[labels == 1].tolist() == [[5, 4]]
    # In a 2 x 2 image the outer distance is a third of a pixel; there is still background to click.
    mask = np.array([[True, False], [False, False]])
    drawn = [random_clicks(mask, np.random.default_rng(seed)) for seed in range(40)]
    background = {tuple(p) for points, labels in drawn for p in points[labels == 0].tolist()}
    assert background == {(1, 0), (0, 1)}


def test_empty_and_full_targets_get_one_label_only():
    rng = np.random.default_rng(2)
    for shape in SHAPES:
        for _ in range(10):
            assert set(random_clicks(np.zeros(shape, bool), rng)[1]) == {0}
            assert set(random_clicks(np.ones(shape, bool), rng)[1]) == {1}
    sampling = ClickSampling(max_negative=0)
    assert len(random_clicks(np.zeros((20, 20), bool), rng, sampling)[1]) == 1


def test_random_clicks_are_a_function_of_the_seed():
    mask = blobs((64, 64), 3)
    draws = [random_clicks(mask, np.random.default_rng(s))[0].tolist() for s in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (13, 11), (12, 19)])
def test_next_click_equals_the_literal_rule(shape):
    differing = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        target = blobs(shape, seed) if seed % 2 else rng.random(shape) < 0.5
        prediction = rng.random(shape) < rng.choice([0.0, 0.2, 0.5, 1.0])
        clicked = NO_CLICKS
        for _ in range(6):
            taken = set(map(tuple, clicked.tolist()))
            expected = literal_next(prediction, target, taken)
            click = next_click(prediction, target, clicked)
            if expected is None:
                assert click is None
                break
            (point, label), (allowed, expected_label) = click, expected
            assert tuple(point) == allowed[0] and label == expected_label
            drawn, drawn_label = next_click(prediction, target, clicked, rng)
            assert tuple(drawn) in allowed and drawn_label == label
            differing += tuple(drawn) != allowed[0]
            clicked = np.concatenate([clicked, drawn[None]])
    assert differing or shape == (1, 1)


def test_largest_comes_first_and_equals_in_order():
    target, prediction = np.zeros((2, 20, 20), bool)
    target[1::2, ::2], prediction[::2, ::4] = True, True
    expected = pixels(target) + pixels(prediction)
    prediction[18, 17] = True  # with (16, 18) now the largest, until both are clicked
    expected.remove((16, 18))
    expected = [(16, 18), (17, 18), *expected]
    clicked = NO_CLICKS
    for point in expected:
        click, _ = next_click(prediction, target, clicked)
        assert tuple(click) == point
        clicked = np.concatenate([clicked, click[None]])


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (13, 11), (12, 19)])
def test_evaluation_click_equals_the_literal_rule(shape):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        target = blobs(shape, seed) if seed % 2 else rng.random(shape) < 0.5
        prediction = rng.random(shape) < rng.choice([0.0, 0.2, 0.5, 1.0])
        clicked = NO_CLICKS
        for _ in range(6):
            click = evaluation_click(prediction, target, clicked)
            expected = literal_evaluation(prediction, target, set(map(tuple, clicked.tolist())))
            if expected is None:
                assert click is None
                break
            assert (tuple(click[0]), click[1]) == expected
            clicked = np.concatenate([clicked, click[0][None]])


def test_border_counts_as_boundary():
    """A band along the border is clicked in its middle, not on the image's edge."""
    target = np.zeros((20, 30), bool)
    target[:, :5] = True
    for rule in (next_click, evaluation_click):
        point, label = rule(np.zeros_like(target), target, NO_CLICKS)
        assert (point.tolist(), label) == ([2, 2], 1)


@pytest.mark.parametrize("rule", [next_click, evaluation_click])
def test_no_pixel_is_clicked_twice_until_none_is_left(rule):
    rng = np.random.default_rng(4)
    target, prediction = rng.random((2, 7, 9)) < 0.5
    clicked = NO_CLICKS
    while (click := rule(prediction, target, clicked)) is not None:
        x, y = click[0]
        assert target[y, x] == click[1] != prediction[y, x]
        clicked = np.concatenate([clicked, click[0][None]])
    wrong = set(pixels(target ^ prediction))
    assert set(map(tuple, clicked.tolist())) == wrong and len(clicked) == len(wrong)
    assert rule(target, target, NO_CLICKS) is None


def test_bad_arguments_are_refused():
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match="bool"):
        random_clicks(mask.astype(np.uint8), np.random.default_rng(0))
    with pytest.raises(ValueError, match="must be"):
        next_click(mask, mask.T, NO_CLICKS)
    for outside in ([5, 0], [0, 4], [-1, 0]):
        with pytest.raises(ValueError, match="outside"):
            evaluation_click(mask, mask, np.array([outside]))
    with pytest.raises(UserError, match="positive_steps"):
        ClickSampling(positive_steps=(0.0,))


def test_clicks_do_not_depend_on_the_last_bit_of_a_distance(monkeypatch):
    """OpenCV's differs from call to call, which used to decide between equally deep pixels."""
    target, nothing = np.zeros((40, 40), bool), np.zeros((0, 2), np.int64)
    target[3:14, 5:30] = True  # the deepest pixels are many
    prediction = np.zeros_like(target)
    clicks = [
        next_click(prediction, target, nothing),
        evaluation_click(prediction, target, nothing),
    ]
    exact = cv2.distanceTransform
    rng = np.random.default_rng(0)

    def rounded(*given):
        found = exact(*given)
        return np.nextafter(found, found + rng.choice([-1, 0, 1], found.shape), dtype=np.float32)

    monkeypatch.setattr(cv2, "distanceTransform", rounded)
    for _ in range(20):
        for click, rule in zip(clicks, (next_click, evaluation_click), strict=True):
            (x, y), label = rule(prediction, target, nothing)
            assert (x, y, label) == (*click[0], click[1])
