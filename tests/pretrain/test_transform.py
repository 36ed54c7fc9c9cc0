"""What the transform of stage one takes, and what it refuses by the record's key."""

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.loader import Record
from pretrain.transform import PretrainTransform


def transformed(image: np.ndarray, meta: dict | None = None):
    record = Record("k7", image, None, meta or {})
    return PretrainTransform(32, 0.2)(record, np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_grey_and_colour_images_are_taken(shape) -> None:
    pixels, key = transformed(np.zeros(shape, np.uint8))
    assert pixels.shape == (3, 32, 32)
    assert key == "k7"


def test_grey_of_16_bits_equals_the_same_grey_of_8() -> None:
    grey = np.random.default_rng(1).integers(90, 166, (40, 50)).astype(np.uint8)
    wide, _ = transformed(grey.astype(np.uint16) * 257)
    narrow, _ = transformed(grey)
    assert (wide - narrow).abs().max() < 0.03  # rounded to 8 bits


@pytest.mark.parametrize(
    ("image", "meta"),
    [
        (np.zeros((5, 40, 50), np.uint8), {}),
        (np.zeros((5, 40, 50), np.uint16), {}),
        (np.zeros((5, 40, 3), np.uint8), {"axes": "DHW"}),
    ],
)
def test_volumes_are_refused(image: np.ndarray, meta: dict) -> None:
    with pytest.raises(UserError, match=r"k7 is a volume .* 2D images; .*--layout nifti"):
        transformed(image, meta)


def test_colour_of_16_bits_is_refused() -> None:
    with pytest.raises(UserError, match="k7 is a uint16 colour image"):
        transformed(np.zeros((40, 50, 3), np.uint16))
