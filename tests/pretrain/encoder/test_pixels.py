"""Intensities as SAM expects them."""

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD, normalise, percentile_window


def grey_levels(normalised):
    """Undo SAM's mean and deviation: (3, H, W) in 0..255."""
    mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
    return (normalised * torch.tensor(PIXEL_STD).view(3, 1, 1) + mean).numpy()


def test_eight_bit_images_keep_their_values():
    rng = np.random.default_rng(0)
    colour = rng.integers(10, 200, (4, 7, 3), dtype=np.uint8)
    pixels = normalise(colour)
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 4, 7)
    for channel, (mean, std) in enumerate(zip(PIXEL_MEAN, PIXEL_STD, strict=True)):
        expected = (colour[..., channel].astype(np.float64) - mean) / std
        assert np.allclose(pixels[channel], expected, atol=1e-5)
    grey = grey_levels(normalise(colour[..., 0]))
    assert np.allclose(grey, np.stack([colour[..., 0]] * 3), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.int64])
def test_other_images_are_scaled_from_their_range(dtype):
    image = np.array([[1000, 1100], [1150, 1200]]).astype(dtype)
    assert np.allclose(grey_levels(normalise(image))[1], [[0, 127.5], [191.25, 255]], atol=1e-3)


def test_a_window_clips_and_can_be_shared_by_slices():
    volume = np.arange(1001, dtype=np.int16).reshape(1, 1, 1001) - 500
    window = percentile_window(volume, 10, 90)
    assert window == (-400.0, 400.0)
    levels = grey_levels(normalise(np.array([[-500, -400, 0, 400, 500]], np.int16), window))
    assert np.allclose(levels[0], [[0, 0, 127.5, 255, 255]], atol=1e-3)
    assert np.allclose(grey_levels(normalise(np.full((1, 1), 50, np.uint8), (0, 100))), 127.5)


def test_large_values_keep_their_contrast():
    image = np.array([[0, 1, 2]], dtype=np.int64) + 2**30
    assert np.allclose(grey_levels(normalise(image))[0], [[0, 127.5, 255]], atol=1e-3)


def test_a_constant_image_is_black():
    assert np.allclose(grey_levels(normalise(np.full((2, 3), 7.5))), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "infinite"),
    ],
)
def test_bad_images_are_refused(image, words):
    with pytest.raises(UserError, match=words):
        normalise(image)
    with pytest.raises(ValueError, match="rise"):
        normalise(np.zeros((2, 2)), (3.0, 3.0))
