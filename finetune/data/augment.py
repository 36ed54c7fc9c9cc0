"""Random changes of an image and its masks in SAM's frame, as another scan might differ."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from finetune.config import Augmentation
from pretrain.encoder.pixels import PIXEL_MEAN, PIXEL_STD


def random_affine(
    augmentation: Augmentation, content: tuple[int, int], rng: np.random.Generator
) -> Tensor:
    """A (2, 3) float32 matrix that maps output pixels (x, y, 1) to input pixels (x, y).

    Rotation, scaling and mirroring are about the centre of the image's content.

    Args:
        content: (height, width) of the image inside the square, which starts at the corner.
    """
    angle = math.radians(augmentation.rotation) * rng.uniform(-1, 1)
    factor = (1 + augmentation.scale) ** rng.uniform(-1, 1)
    shift = augmentation.translation * max(content) * rng.uniform(-1, 1, size=2)
    mirror = -1.0 if rng.uniform() < augmentation.flip else 1.0
    centre = (np.array(content[::-1]) - 1) / 2  # (x, y)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    linear = np.diag([mirror, 1.0]) @ turn / factor
    offset = centre - linear @ (centre + shift)
    return torch.from_numpy(np.column_stack([linear, offset])).float()


def warp(values: Tensor, matrix: Tensor, mode: str) -> Tensor:
    """Resample (C, S, S) float at the input pixels `matrix` gives; outside the square it is 0.

    Args:
        matrix: (2, 3), as from `random_affine`.
        mode: "bilinear" for images, "nearest" for masks.
    """
    size = values.shape[-1]
    axis = torch.arange(size, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    output = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)  # (S, S, 3)
    source = output @ matrix.T  # (S, S, 2)
    # grid_sample counts from -1 to 1 between the outer edges of the first and last pixel.
    grid = (2 * source + 1) / size - 1
    return grid_sample(values[None], grid[None], mode=mode, align_corners=False)[0]


def change_intensity(
    image: Tensor, valid: Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> Tensor:
    """Random gamma, contrast and brightness of a normalised (3, S, S) image, clipped to 0..255.

    Args:
        valid: (S, S) bool; padding keeps SAM's mean colour, which is 0.
    """
    gamma = math.exp(augmentation.gamma * rng.uniform(-1, 1))
    contrast = 1 + augmentation.contrast * rng.uniform(-1, 1)
    brightness = augmentation.brightness * rng.uniform(-1, 1)
    mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1) / 255
    std = torch.tensor(PIXEL_STD).view(3, 1, 1) / 255
    grey = (image * std + mean).clamp(0, 1) ** gamma  # 0..1
    middle = grey[:, valid].mean() if valid.any() else grey.mean()
    changed = ((grey - middle) * contrast + middle + brightness).clamp(0, 1)
    return (changed - mean) / std * valid
