"""Stored images as the values that SAM was trained on."""

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD, as_pixels, normalise_pixels, stack_pixels


def test_eight_bit_images_keep_their_values():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (4, 7, 3), dtype=np.uint8)
    pixels = as_pixels(colour)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 4, 7)
    normalised = normalise_pixels(pixels[None])[0]
    assert normalised.dtype == torch.float32 and normalised.is_contiguous()
    for channel, (mean, std) in enumerate(zip(PIXEL_MEAN, PIXEL_STD, strict=True)):
        expected = (colour[..., channel].astype(np.float64) - mean) / std
        assert np.allclose(normalised[channel], expected, atol=1e-5)
    grey = as_pixels(colour[..., 0])
    assert grey.shape == (1, 4, 7) and np.array_equal(grey[0], colour[..., 0])
    repeated = normalise_pixels(pixels[:1].expand(3, -1, -1)[None])
    assert torch.equal(normalise_pixels(grey[None]), repeated)


def test_white_is_the_maximum_of_the_dtype():
    grey = np.array([[0, 51, 102, 255]], np.uint8)  # a dark slice must stay dark
    eight, sixteen = as_pixels(grey).float(), as_pixels(grey.astype(np.uint16) * 257)
    assert sixteen.dtype == torch.float32 and torch.allclose(eight, sixteen, atol=1e-5)


def test_flipped_views_are_taken_as_they_look():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(as_pixels(image[::-1, ::-1])[0], image[::-1, ::-1])


def test_padding_is_the_mean_colour():
    valid = torch.tensor([[[True, False]]])
    normalised = normalise_pixels(torch.full((1, 1, 1, 2), 200, dtype=torch.uint8), valid)
    assert (normalised[..., 1] == 0).all() and (normalised[..., 0] > 1).all()


def test_batches_take_the_smallest_type_and_channels():
    grey = torch.randint(0, 256, (1, 4, 5), dtype=torch.uint8)
    colour = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    assert stack_pixels([grey, grey]).shape == (2, 1, 4, 5)
    both = stack_pixels([grey, colour])
    assert both.dtype == torch.uint8 and torch.equal(both[0], grey.expand(3, -1, -1))
    assert stack_pixels([grey, grey.float()]).dtype == torch.float32


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\); expected"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4)), "type float64, of which black and white are not known"),
        (np.zeros((4, 4), np.int16), "type int16"),
        (np.zeros((4, 4, 3), np.float32), "scale it to uint8"),
        (np.zeros((4, 4), bool), "type bool"),
    ],
)
def test_images_whose_white_is_not_known_are_refused(image, words):
    with pytest.raises(UserError, match=words):
        as_pixels(image)
