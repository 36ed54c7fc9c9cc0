"""Grey values of any range to stored integers."""

import numpy as np
import pytest

from data_prep.readers.histogram import counted_limits
from data_prep.readers.intensity import FEW_PIXELS, distinct, intensity_limits, look_up, to_integers


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize(("bits", "top"), [(8, 255), (16, 65535)])
def test_the_full_window_is_the_range_of_the_image(dtype, bits, top):
    image = np.array([[1000, 1100], [1150, 1200]]).astype(dtype)
    found = to_integers(image, intensity_limits(image, "full"), bits)
    assert found.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.array_equal(found, np.floor(np.array([[0, 0.5], [0.75, 1]]) * top + 0.5))


def test_a_window_clips_and_is_shared_by_slices():
    volume = np.arange(1001, dtype=np.int16).reshape(1, 1, 1001) - 500
    window = intensity_limits(volume, "percentile")
    assert window == (-495.0, 495.0)
    values = np.array([[-500, -400, 0, 400, 500]], np.int16)
    assert to_integers(values, (-400.0, 400.0), 8).tolist() == [[0, 0, 128, 255, 255]]
    assert to_integers(np.full((1, 1), 50, np.uint8), (0, 100), 8) == 128


def test_large_values_keep_their_contrast():
    image = np.array([[0, 1, 2]], dtype=np.int64) + 2**30
    found = to_integers(image, intensity_limits(image, "full"), 8)
    assert found.tolist() == [[0, 128, 255]]


def test_a_few_bright_pixels_on_an_even_ground_are_seen():
    image = np.zeros((100, 100))
    image[3, 4] = 9.0
    found = to_integers(image, intensity_limits(image, "percentile"), 8)
    assert found[3, 4] == 255 and found.sum() == 255


def test_a_constant_image_is_black():
    image = np.full((2, 3), 7.5)
    assert not to_integers(image, intensity_limits(image, "auto"), 8).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("spread", [1, 40, 30000])
def test_counted_values_have_the_percentiles_of_all_pixels(dtype, spread):
    """Exactly, also where neighbours in rank lie so far apart that their difference overflows."""
    rng = np.random.default_rng(spread)
    whole = np.iinfo(dtype)
    for size in (FEW_PIXELS, FEW_PIXELS + 77, 100_001):
        image = np.clip(rng.normal(0, spread, size), whole.min, whole.max).astype(dtype)
        image[: size // 150] = whole.max
        image[-size // 190 :] = whole.min
        values, counts, unsigned = distinct(image)
        for convert in (lambda v: v, lambda v: v.astype(float) * 1.7 - 3, lambda v: v * -0.3):
            expected = intensity_limits(convert(image), "percentile")
            assert intensity_limits(convert(values), "percentile", counts) == expected
        assert np.array_equal(look_up(values, values, unsigned), image)
        assert counts.sum() == size and len(np.unique(values)) == len(values)


def test_only_small_integers_are_counted():
    for dtype in (np.float32, np.int32, np.dtype(">i2")):
        assert distinct(np.zeros(FEW_PIXELS, dtype)) is None
    assert distinct(np.zeros(FEW_PIXELS - 1, np.int16)) is None
    values, counts, _ = distinct(np.zeros((FEW_PIXELS, 2), np.int16)[:, 0])
    assert values.tolist() == [0] and counts.tolist() == [FEW_PIXELS]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("seed", range(4))
def test_limits_by_counting_are_those_by_sorting(kind, seed):
    generator = np.random.default_rng(seed)
    shape = (3, int(generator.integers(1, 40)), int(generator.integers(1, 40)))
    values = np.round(generator.normal(20, 40, shape)).clip(0, 127).astype(kind)
    values[0, 0] = 100
    for window in ("percentile", "full", (3.0, 9.0)):
        assert counted_limits(values, window) == pytest.approx(intensity_limits(values, window))
    rest = values[(values < 0) | (values > 15)]
    assert counted_limits(values, "percentile", (0, 15)) == pytest.approx(
        intensity_limits(rest, "percentile")
    )
    even = np.full(shape, 7, kind)
    assert counted_limits(even, "percentile") == (7, 7)
    assert counted_limits(even, "percentile", (7, 7)) == (7, 7)  # there are no others


def test_a_few_bright_pixels_on_an_even_ground_set_the_limits():
    values = np.zeros((10, 100, 100), np.int16)
    values[5, 5, 5] = 900
    assert counted_limits(values, "auto") == intensity_limits(values, "auto") == (0, 900)
