"""What the transform of stage one takes, and what it refuses by the record's key."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from pretrain.augment import Augmentation
from pretrain.encoder.pixels import as_pixels, normalise_pixels
from pretrain.transform import PretrainTransform, collate, random_crop


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


def transformed(image: np.ndarray, meta: dict | None = None):
    record = Record("k7", image, None, meta or {})
    return PretrainTransform(32, 0.2)(record, np.random.default_rng(0))


@pytest.mark.parametrize(("shape", "channels"), [((40, 50), 1), ((40, 50, 3), 3)])
def test_samples_keep_channels_and_bits(shape, channels) -> None:
    pixels, key, _ = transformed(noise(shape))
    assert pixels.shape == (channels, 32, 32) and pixels.dtype == torch.uint8
    assert key == "k7"


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_a_sample_is_the_scaled_crop_that_pillow_gives(shape) -> None:
    image = np.array(Image.fromarray(noise(shape)).resize((200, 160)))
    flipped = []
    for seed in range(6):
        pixels, *_ = PretrainTransform(32, 0.2)(
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
    images, keys, groups = collate([grey, grey])
    assert images.shape == (2, 1, 32, 32) and images.dtype == torch.uint8
    assert keys == ["k7", "k7"] and groups.tolist() == [grey.group] * 2
    images = collate([grey, colour]).images
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.uint8
    images = collate([wide, grey, colour]).images
    assert images.dtype == torch.float32
    for number, sample in enumerate([wide, grey, colour]):
        assert torch.equal(images[number], sample.pixels.float().expand(3, -1, -1))


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
    pixels = transformed(edge).pixels
    assert pixels.min() == 0 and pixels.max() == 255


def test_grey_of_16_bits_equals_the_same_grey_of_8() -> None:
    grey = np.random.default_rng(1).integers(90, 166, (40, 50)).astype(np.uint8)
    wide = transformed(grey.astype(np.uint16) * 257).pixels
    narrow = transformed(grey).pixels
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


@pytest.mark.parametrize(
    ("height", "width"), [(1000, 150), (150, 1000), (40, 7), (100, 100), (3, 1)]
)
def test_elongated_images_are_not_squeezed(height: int, width: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        x0, y0, x1, y1 = random_crop(height, width, 0.2, generator)
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        slack = 1 / min(x1 - x0, y1 - y0)  # sides are whole pixels
        assert 3 / 4 - slack <= (x1 - x0) / (y1 - y0) <= 4 / 3 + slack


def test_all_of_an_elongated_image_is_seen() -> None:
    generator = np.random.default_rng(0)
    seen = np.zeros(1000, bool)
    for _ in range(3000):
        _, y0, _, y1 = random_crop(1000, 100, 0.2, generator)
        seen[y0:y1] = True
    assert seen.all()


def test_the_flip_can_be_switched_off() -> None:
    image = noise((40, 50))
    for seed in range(10):
        crop, flipped = (
            PretrainTransform(32, 0.2, flip)(
                Record("k", image, None, {}), np.random.default_rng(seed)
            ).pixels
            for flip in (0.0, 1.0)
        )
        assert torch.equal(flipped, crop.flip(2)) and not torch.equal(flipped, crop)


def test_images_of_one_patient_have_one_number() -> None:
    numbers = [transformed(noise((40, 50)), {"group": name}).group for name in ("a", "a", "b")]
    assert numbers[0] == numbers[1] != numbers[2]
    without = [transformed(noise((40, 50)), meta).group for meta in ({}, {"group": ""})]
    assert without[0] == without[1]  # both have the key k7


def test_augmentation_comes_last_and_draws_from_the_same_generator() -> None:
    class Inverted(Augmentation):
        def __call__(self, pixels, generator):
            self.drawn = generator.random()
            return 255 - pixels

    inverted = Inverted()
    record = Record("k", noise((40, 50)), None, {})
    plain = PretrainTransform(32, 0.2)(record, np.random.default_rng(3))
    changed = PretrainTransform(32, 0.2, augmentation=inverted)(record, np.random.default_rng(3))
    assert torch.equal(changed.pixels, 255 - plain.pixels)
    first = inverted.drawn
    PretrainTransform(32, 0.2, augmentation=inverted)(record, np.random.default_rng(3))
    assert inverted.drawn == first
