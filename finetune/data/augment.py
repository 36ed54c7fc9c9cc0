"""Random changes of an image and its masks in SAM's frame, as another scan might differ."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from finetune.config import Augmentation


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


def warp(values: Tensor, matrix: Tensor, mode: str, size: int | None = None) -> Tensor:
    """Resample (C, h, w) float at the input pixels that `matrix` gives, to (C, size, size).

    Args:
        matrix: (2, 3), as from `random_affine`.
        mode: "bilinear" for images, beyond whose edge their outermost pixels go on, so that no
            other colour is mixed in; "nearest" for masks, which are 0 there.
        size: Side of the result; by default that of the input.
    """
    height, width = values.shape[-2:]
    axis = torch.arange(size or width, dtype=torch.float32)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    output = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)  # (S, S, 3)
    source = output @ matrix.T  # (S, S, 2)
    # grid_sample counts from -1 to 1 between the outer edges of the first and last pixel.
    grid = (2 * source + 1) / torch.tensor([width, height]) - 1
    outside = "border" if mode == "bilinear" else "zeros"
    return grid_sample(values[None], grid[None], mode, outside, align_corners=False)[0]


def change_intensity(
    image: Tensor, valid: Tensor, augmentation: Augmentation, rng: np.random.Generator
) -> Tensor:
    """Random gamma, contrast and brightness of an image (C, S, S) float in 0..255, clipped.

    Args:
        valid: (S, S) bool: where the image is, and not padding.
    """
    gamma = math.exp(augmentation.gamma * rng.uniform(-1, 1))
    contrast = 1 + augmentation.contrast * rng.uniform(-1, 1)
    brightness = augmentation.brightness * rng.uniform(-1, 1)
    grey = (image / 255).clamp(0, 1) ** gamma
    middle = grey[:, valid].mean() if valid.any() else grey.mean()
    return ((grey - middle) * contrast + middle + brightness).clamp(0, 1) * 255
