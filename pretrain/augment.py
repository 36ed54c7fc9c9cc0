"""Augmentation of cropped training images, by the kind of image.

Pixels are in 0..255, (1, S, S) grey or (3, S, S) RGB, uint8 or float32, and leave as they came. All
randomness is that of the generator given. What happens to single values goes through one table of
256 entries, so that brightness, contrast and gamma together cost one look-up.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from data_prep.common.errors import UserError


def _check(kind: str, **ranges: tuple[float, float, float]) -> None:
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"{kind}: {name} is {value}; it must lie in [{low}, {high}]")


class Augmentation(ABC):
    """Changes a cropped image so that what it shows stays the same."""

    @abstractmethod
    def __call__(self, pixels: Tensor, generator: np.random.Generator) -> Tensor:
        """(C, S, S) in 0..255 -> the same shape and type."""


@dataclass
class ScanAugmentation(Augmentation):
    """For X-ray, CT, MR and ultrasound: intensity, gamma, small rotation and blur."""

    intensity: float = 0.15
    """Largest relative change of the contrast, and largest shift as a share of white."""
    gamma: float = 1.4
    """Largest exponent of the grey values, or the inverse of it; 1 for none."""
    rotation: float = 10.0
    """Largest rotation in degrees; corners are filled by reflection."""
    blur: float = 1.0
    """Largest standard deviation of a Gaussian blur in pixels; 0 for none."""
    share: float = 0.5
    """Probability of the rotation, and of the blur."""

    def __post_init__(self) -> None:
        _check("scan", intensity=(self.intensity, 0, 1), gamma=(self.gamma, 1, 10))
        _check("scan", rotation=(self.rotation, 0, 180), blur=(self.blur, 0, 10))
        _check("scan", share=(self.share, 0, 1))

    def __call__(self, pixels: Tensor, generator: np.random.Generator) -> Tensor:
        """(C, S, S) in 0..255 -> the same shape and type."""
        contrast, shift = generator.uniform(-self.intensity, self.intensity, 2)
        power = math.exp(generator.uniform(-1, 1) * math.log(self.gamma))
        pixels = adjust_values(pixels, power, [1 + contrast] * len(pixels), shift)
        if self.rotation and generator.random() < self.share:
            pixels = rotate(pixels, generator.uniform(-self.rotation, self.rotation))
        return blurred(pixels, self.blur, self.share, generator)


@dataclass
class PhotographAugmentation(Augmentation):
    """For photographs of skin, retina or endoscopy: brightness, contrast, colour and blur."""

    brightness: float = 0.1
    """Largest shift as a share of white."""
    contrast: float = 0.2
    """Largest relative change of the contrast."""
    balance: float = 0.1
    """Largest relative change of one colour channel against the others."""
    saturation: float = 0.3
    """Largest relative change of the saturation."""
    blur: float = 1.0
    """Largest standard deviation of a Gaussian blur in pixels; 0 for none."""
    share: float = 0.3
    """Probability of the blur."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip, for images without an up and a down."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "balance", "saturation", "share", "vertical_flip"):
            _check("photograph", **{name: (getattr(self, name), 0, 1)})
        _check("photograph", blur=(self.blur, 0, 10))

    def __call__(self, pixels: Tensor, generator: np.random.Generator) -> Tensor:
        """(C, S, S) in 0..255 -> the same shape and type; grey stays grey."""
        shift = generator.uniform(-self.brightness, self.brightness)
        contrast = 1 + generator.uniform(-self.contrast, self.contrast)
        balance = 1 + generator.uniform(-self.balance, self.balance, 3)
        saturation = 1 + generator.uniform(-self.saturation, self.saturation)
        if len(pixels) == 3:
            pixels = adjust_values(pixels, 1.0, (contrast * balance).tolist(), shift)
            pixels = saturate(pixels, saturation)
        else:
            pixels = adjust_values(pixels, 1.0, [contrast], shift)
        if generator.random() < self.vertical_flip:
            pixels = pixels.flip(1)
        return blurred(pixels, self.blur, self.share, generator)


class AugmentationByColour(Augmentation):
    """Grey images as scans and images in colour as photographs, so that one run can hold both.

    Shards keep grey images in one channel: X-ray, CT, MR and most ultrasound.

    Args:
        scan: Options for grey images.
        photograph: Options for images in colour.
    """

    def __init__(
        self,
        scan: ScanAugmentation = ScanAugmentation(),  # noqa: B008 (never changed)
        photograph: PhotographAugmentation = PhotographAugmentation(),  # noqa: B008
    ) -> None:
        self.scan, self.photograph = scan, photograph

    def __call__(self, pixels: Tensor, generator: np.random.Generator) -> Tensor:
        """(C, S, S) in 0..255 -> the same shape and type."""
        chosen = self.scan if len(pixels) == 1 else self.photograph
        return chosen(pixels, generator)


def adjust_values(pixels: Tensor, power: float, gains: Sequence[float], shift: float) -> Tensor:
    """gain * value ** power + shift of values in 0..1, clipped.

    Black stays black where there is no shift: most of a scan is background.

    Args:
        pixels: (C, S, S) in 0..255.
        gains: One number for each channel.
        shift: Share of white.
    """
    image = pixels.numpy()
    values = np.arange(256, dtype=np.float32) if image.dtype == np.uint8 else image
    curve = (values / 255) ** power
    tables = [np.clip(255 * (gain * curve + shift), 0, 255) for gain in gains]
    if image.dtype == np.uint8:
        rounded = [np.rint(table).astype(np.uint8) for table in tables]
        channels = [np.take(table, channel) for table, channel in zip(rounded, image, strict=True)]
    else:
        channels = [table[index] for index, table in enumerate(tables)]
    return torch.from_numpy(np.stack(channels))


def saturate(pixels: Tensor, factor: float) -> Tensor:
    """Colours of (3, S, S) moved towards grey (factor below 1), or away from it."""
    image = pixels.float()
    grey = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)  # ITU-R BT.601
    return _like(torch.lerp(grey.expand_as(image), image, factor), pixels)


def rotate(pixels: Tensor, degrees: float) -> Tensor:
    """(C, S, S) rotated about its centre, bilinear; what comes in at the corners is reflected."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
    grid = affine_grid(matrix, [1, *pixels.shape], align_corners=False)
    image = pixels[None].float()
    rotated = grid_sample(image, grid, padding_mode="reflection", align_corners=False)[0]
    return _like(rotated, pixels)


def blurred(pixels: Tensor, largest: float, share: float, generator: np.random.Generator) -> Tensor:
    """A share of the images blurred, by a deviation drawn from [0.1, largest] pixels."""
    if not largest or generator.random() >= share:
        return pixels
    sigma = generator.uniform(min(0.1, largest), largest)
    image = pixels.numpy().astype(np.float32)
    return _like(torch.from_numpy(gaussian_filter(image, (0, sigma, sigma), truncate=2)), pixels)


def _like(values: Tensor, pixels: Tensor) -> Tensor:
    """Values clipped to 0..255, in the type of `pixels`."""
    values = values.clamp(0, 255)
    return values if pixels.dtype != torch.uint8 else values.round().to(torch.uint8)
