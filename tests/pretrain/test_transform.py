"""What the transform of stage one takes, and what it refuses by the record's key."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from pretrain.encoder.pixels import as_pixels, normalise_pixels
from pretrain.transform import PretrainTransform, collate, random_crop


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


def transformed(image: np.ndarray, meta: dict | None = None):
    record = Record("k7", image, None, meta or {})
    return PretrainTransform(32, 0.2)(record, np.random.default_rng(0))


@pytest.mark.parametrize(("shape", "channels"), [((40, 50), 1), ((40, 50, 3), 3)])
def test_samples_keep_channels_and_bits(shape, channels) -> None:
    pixels, key = transformed(noise(shape))
    assert pixels.shape == (channels, 32, 32) and pixels.dtype == torch.uint8
    assert key == "k7"


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_a_sample_is_the_scaled_crop_that_pillow_gives(shape) -> None:
    image = np.array(Image.fromarray(noise(shape)).resize((200, 160)))
    flipped = []
    for seed in range(6):
        pixels, _ = PretrainTransform(32, 0.2)(
            Record("k", image, None, {}), np.random.default_rng(seed)
        )
        generator = np.random.default_rng(seed)
        box = random_crop(*image.shape[:2], 0.2, generator)
        crop = Image.fromarray(image).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
        flipped.append(generator.random() < 0.5)
        expected = np.asarray(crop)[:, ::-1] if flipped[-1] else np.asarray(crop)
        ours = pixels.permute(1, 2, 0).numpy().reshape(expected.shape).astype(int)
        assert np.abs(ours - expected).max() <= 1
    assert {True, False} == set(flipped)


def test_batches_hold_what_all_samples_need() -> None:
    grey, colour = transformed(noise((40, 50))), transformed(noise((40, 50, 3)))
    wide = transformed(noise((40, 50), np.uint16))
    images, keys = collate([grey, grey])
    assert images.shape == (2, 1, 32, 32) and images.dtype == torch.uint8
    assert keys == ["k7", "k7"]
    images, _ = collate([grey, colour])
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    images, _ = collate([wide, grey, colour])
    assert images.dtype == torch.float32
    for number, (sample, _) in enumerate([wide, grey, colour]):
        assert torch.equal(images[number], sample.float().expand(3, -1, -1))


def test_a_batch_is_normalised_as_its_images_are() -> None:
    samples = [transformed(noise((40, 50))), transformed(noise((40, 50, 3)))]
    images = normalise_pixels(collate(samples)[0])
    assert images.is_contiguous()
    grey, colour = (sample[0].permute(1, 2, 0).numpy() for sample in samples)
    for index, image in enumerate((grey[..., 0], colour)):
        assert torch.equal(images[index], normalise_pixels(as_pixels(image)[None])[0])


def test_values_stay_in_range() -> None:
    """Bicubic weights overshoot at an edge."""
    edge = np.zeros((40, 50), np.uint16)
    edge[:, 25:] = 65535
    pixels, _ = transformed(edge)
    assert pixels.min() == 0 and pixels.max() == 255


def test_grey_of_16_bits_equals_the_same_grey_of_8() -> None:
    grey = np.random.default_rng(1).integers(90, 166, (40, 50)).astype(np.uint8)
    wide, _ = transformed(grey.astype(np.uint16) * 257)
    narrow, _ = transformed(grey)
    assert (wide - narrow.float()).abs().max() < 1.01  # each pass of the scaling rounds


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
