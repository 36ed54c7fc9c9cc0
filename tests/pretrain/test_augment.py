"""Augmentation: each change against its formula, within the range that its options state."""

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate as scipy_rotate

from data_prep.common.errors import UserError
from pretrain.augment import (
    AugmentationByColour,
    PhotographAugmentation,
    ScanAugmentation,
    adjust_values,
    blurred,
    rotate,
    saturate,
)


def picture(channels: int, dtype: torch.dtype = torch.uint8, side: int = 40) -> torch.Tensor:
    """A smooth image in the middle of the range."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [100 + 40 * torch.sin((row + 2 * c * column) / 6) for c in range(1, channels + 1)]
    return torch.stack(waves).to(dtype)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_values_are_adjusted_by_the_formula(dtype) -> None:
    pixels = torch.stack([torch.arange(256).view(16, 16)] * 3).to(dtype)
    gains, power, shift = [0.8, 1.0, 1.3], 1.2, 0.05
    changed = adjust_values(pixels, power, gains, shift)
    assert changed.dtype == dtype
    for channel, gain in enumerate(gains):
        for value in range(256):
            expected = min(max(255 * (gain * (value / 255) ** power + shift), 0), 255)
            found = float(changed[channel].flatten()[value])
            assert found == pytest.approx(expected, abs=0.501 if dtype == torch.uint8 else 1e-3)


def test_black_stays_black_without_a_shift() -> None:
    assert not adjust_values(torch.zeros(1, 8, 8, dtype=torch.uint8), 0.7, [1.3], 0.0).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_rotation_turns_the_middle_as_scipy_does(channels: int) -> None:
    pixels = picture(channels, torch.float32)
    ours = rotate(pixels, 10.0).numpy()
    theirs = scipy_rotate(pixels.numpy(), 10.0, axes=(2, 1), reshape=False, order=1, mode="nearest")
    middle = (slice(None), slice(8, -8), slice(8, -8))
    assert np.abs(ours[middle] - theirs[middle]).max() < 0.5
    assert np.abs(ours - pixels.numpy())[middle].max() > 5
    assert ours.min() > 50  # corners are not black


def test_saturation_keeps_grey_and_brightness() -> None:
    pixels = picture(3, torch.float32)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (pixels * weights).sum(0)
    for factor in (0.0, 0.5, 1.2):
        changed = saturate(pixels, factor)
        torch.testing.assert_close(changed - grey, factor * (pixels - grey), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close((changed * weights).sum(0), grey, atol=1e-3, rtol=1e-3)


def test_a_share_of_the_images_is_blurred_and_keeps_its_mean() -> None:
    pixels = torch.from_numpy(rng().integers(0, 256, (3, 40, 40)).astype(np.uint8))
    results = [blurred(pixels, 1.0, 0.5, rng(seed)) for seed in range(40)]
    unchanged = sum(torch.equal(result, pixels) for result in results)
    assert 10 <= unchanged <= 30
    for result in results:
        assert result.dtype == torch.uint8
        assert abs(result.float().mean() - pixels.float().mean()) < 1
        for before, after in zip(pixels.float(), result.float(), strict=True):
            assert after.std() <= before.std()  # channels are not mixed


@pytest.mark.parametrize("augmentation", [ScanAugmentation(), PhotographAugmentation()])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shape_and_type_stay_and_the_generator_decides_all(augmentation, channels, dtype) -> None:
    pixels = picture(channels, dtype)
    before = pixels.clone()
    results = [augmentation(pixels, rng(seed)) for seed in (1, 1, 2)]
    for result in results:
        assert result.shape == pixels.shape and result.dtype == dtype
        assert result.min() >= 0 and result.max() <= 255
    assert torch.equal(pixels, before)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_grey_and_colour_are_told_apart() -> None:
    nothing = ScanAugmentation(intensity=0, gamma=1, rotation=0, blur=0)
    shift = PhotographAugmentation(0.1, 0, 0, 0, 0)
    both = AugmentationByColour(nothing, shift)
    assert torch.equal(both(picture(1), rng()), picture(1))
    moved = both(picture(3), rng()).float() - picture(3)
    assert 0 < moved.abs().max() <= 0.1 * 255 + 1 and moved.std() < 0.5


def test_a_vertical_flip_is_for_those_who_ask() -> None:
    quiet = {"brightness": 0, "contrast": 0, "balance": 0, "saturation": 0, "blur": 0}
    flipped = PhotographAugmentation(**quiet, vertical_flip=1.0)(picture(3), rng())
    assert torch.equal(flipped, picture(3).flip(1))
    assert torch.equal(PhotographAugmentation(**quiet)(picture(3), rng()), picture(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScanAugmentation(gamma=0.5), "scan: gamma is 0.5"),
        (lambda: ScanAugmentation(share=2), "scan: share is 2"),
        (lambda: PhotographAugmentation(balance=-1), "photograph: balance is -1"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
