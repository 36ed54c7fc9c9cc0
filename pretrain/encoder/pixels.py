"""From stored pixels to the values Segment Anything was trained on.

Images travel as they are stored, 8-bit and grey in one channel, up to the device that computes;
there they are normalised.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from data_prep.common.errors import UserError

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Red, green and blue mean of SAM's training images, in 0..255."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""Red, green and blue standard deviation of SAM's training images, in 0..255."""


def as_pixels(image: NDArray[np.generic]) -> Tensor:
    """A stored image as channels of values in 0..255.

    Args:
        image: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, in which white is the largest value.

    Returns:
        (1, H, W) or (3, H, W): uint8 as it is, uint16 as float32.

    Raises:
        UserError: Another shape, no pixels, or another type, whose white is not known.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise UserError(f"an image has shape {image.shape}; expected (H, W) or (H, W, 3)")
    if image.size == 0:
        raise UserError(f"an image has shape {image.shape}: it holds no pixels")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"an image has values of type {image.dtype}, of which black and white are not known;"
            " scale it to uint8 (0 to 255) or uint16 (0 to 65535)"
        )
    # torch takes no negative strides, as those of a flipped view
    pixels = torch.from_numpy(image if min(image.strides) > 0 else image.copy())
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (C, H, W)
    if image.dtype == np.uint8:
        return pixels
    return pixels.float() * (255.0 / np.iinfo(np.uint16).max)


def stack_pixels(images: Sequence[Tensor]) -> Tensor:
    """Images of one size as a batch, in the smallest type and channels that hold all of them.

    Args:
        images: B times (1, H, W) or (3, H, W), uint8 or float32.

    Returns:
        (B, 1, H, W) or (B, 3, H, W), uint8 or float32. In a worker process it is made in shared
        memory, so that it reaches the training process without another copy.
    """
    channels = max(image.shape[0] for image in images)
    dtype = max((image.dtype for image in images), key=lambda dtype: dtype.itemsize)
    return default_collate([image.to(dtype).expand(channels, -1, -1) for image in images])


def normalise_pixels(pixels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Subtract SAM's mean and divide by its deviation.

    Args:
        pixels: (B, 3, H, W), or (B, 1, H, W) grey, in 0..255, uint8 or float.
        valid: (B, H, W) bool, False on padding, which becomes 0: SAM's mean colour. None: no
            padding.

    Returns:
        (B, 3, H, W) float32, contiguous, on the same device.
    """
    mean, std = (
        torch.tensor(values, device=pixels.device).view(3, 1, 1)
        for values in (PIXEL_MEAN, PIXEL_STD)
    )
    normalised = (pixels.contiguous() - mean) / std
    return normalised if valid is None else normalised * valid[:, None]


def to_common_scale(images: Tensor) -> Tensor:
    """Normalised images with one mean and one deviation for all channels in place of SAM's three.

    A grey image has three equal channels again, as it was stored.

    Args:
        images: (..., 3, H, W) as `normalise_pixels` gives them.
    """
    mean, std = (
        torch.tensor(c, device=images.device).view(3, 1, 1) for c in (PIXEL_MEAN, PIXEL_STD)
    )
    return (images * std + (mean - mean.mean())) / std.mean()


def from_common_scale(images: Tensor) -> Tensor:
    """The reverse of `to_common_scale`."""
    mean, std = (
        torch.tensor(c, device=images.device).view(3, 1, 1) for c in (PIXEL_MEAN, PIXEL_STD)
    )
    return (images * std.mean() - (mean - mean.mean())) / std
