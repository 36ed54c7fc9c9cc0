"""From stored pixels to the values Segment Anything was trained on."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.common.errors import UserError

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Red, green and blue mean of SAM's training images, in 0..255."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""Red, green and blue standard deviation of SAM's training images, in 0..255."""


def percentile_window(
    image: NDArray[np.generic], low: float = 0.5, high: float = 99.5
) -> tuple[float, float]:
    """Intensities at two percentiles of an image, or of a whole volume whose slices should match.

    Args:
        image: array of any shape, without NaN.
        low: lower percentile, 0..100.
        high: upper percentile, 0..100.
    """
    lower, upper = np.percentile(image, (low, high))
    return float(lower), float(upper)


def normalise(image: NDArray[np.generic], window: tuple[float, float] | None = None) -> Tensor:
    """Scale to 0..255, make three channels, subtract SAM's mean and divide by its deviation.

    Args:
        image: (H, W) grey or (H, W, 3) RGB, of any numeric type.
        window: intensities that become 0 and 255; values outside are clipped. Without one, 8-bit
            images are taken as they are and all others are scaled from their own minimum and
            maximum (over all channels); a constant image that is not 8-bit becomes black.

    Returns:
        (3, H, W) float32; a grey image is repeated over the channels.

    Raises:
        UserError: another shape, or a value that is not finite.
        ValueError: a window whose upper end is not above its lower end.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise UserError(f"an image has shape {image.shape}; expected (H, W) or (H, W, 3)")
    if image.size == 0:
        raise UserError(f"an image has shape {image.shape}: it holds no pixels")
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"the intensity window {window} does not rise")
    if not np.isfinite(image).all():
        raise UserError("an image has NaN or infinite values; replace them before using it")

    values = _scale_to_255(image, window)
    if values.ndim == 2:
        values = values[..., None]
    return normalise_pixels(torch.from_numpy(values.transpose(2, 0, 1)))


def normalise_pixels(pixels: Tensor) -> Tensor:
    """Subtract SAM's mean and divide by its deviation.

    Args:
        pixels: (..., 3, H, W), or (..., 1, H, W) grey, in 0..255, uint8 or float.

    Returns:
        (..., 3, H, W) float32, contiguous, on the same device.
    """
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1)
        for values in (PIXEL_MEAN, PIXEL_STD)
    )
    return (pixels.contiguous() - mean) / std


def _scale_to_255(
    image: NDArray[np.generic], window: tuple[float, float] | None
) -> NDArray[np.float32]:
    """The image as float32 in 0..255, same shape."""
    if window is None:
        if image.dtype == np.uint8:
            return image.astype(np.float32)
        window = float(image.min()), float(image.max())
        if window[0] == window[1]:
            return np.zeros(image.shape, np.float32)
    low, high = window
    # Double precision: a window of large values a few units wide would vanish in float32.
    scaled = (image.astype(np.float64) - low) * (255.0 / (high - low))
    return scaled.clip(0.0, 255.0).astype(np.float32)
