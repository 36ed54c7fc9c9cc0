"""A stored image to a training sample: random crop, scale, flip, augmentation.

Samples stay as small as they are stored, grey in one channel and 8 bits in 8 bits, on their way
from the loader's workers to the device, where `normalise_pixels` makes the encoder's input of them.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from pretrain.augment import Augmentation
from pretrain.encoder.pixels import as_pixels, stack_pixels


class PretrainSample(NamedTuple):
    """A training image."""

    pixels: Tensor
    """(1, S, S) grey or (3, S, S) RGB in 0..255; uint8, or float32 of a 16-bit image."""
    key: str
    """Of the record."""
    group: int
    """64 bits that are equal where images show the same patient."""


class PretrainBatch(NamedTuple):
    """Training images of one forward pass."""

    images: Tensor
    """(B, 1, S, S) or (B, 3, S, S), see `stack_pixels`."""
    keys: list[str]
    """Of the records."""
    groups: Tensor
    """(B,) int64, equal where images show the same patient."""


class PretrainTransform:
    """Random resized crop and horizontal flip (MAE, arXiv 2111.06377, appendix A.1).

    Args:
        image_size: Side of the result in pixels.
        min_scale: Smallest share of the image's area that a crop covers.
        flip: Probability of a horizontal flip.
        augmentation: What is done to the cropped image; None for nothing.
    """

    def __init__(
        self,
        image_size: int,
        min_scale: float,
        flip: float = 0.5,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.image_size, self.min_scale = image_size, min_scale
        self.flip, self.augmentation = flip, augmentation

    def __call__(self, record: Record, generator: np.random.Generator) -> PretrainSample:
        """The record as a training image.

        Raises:
            UserError: The record is a volume, or colour of 16 bits.
        """
        image = record.image
        require_picture(record)
        height, width = image.shape[:2]
        x0, y0, x1, y1 = random_crop(height, width, self.min_scale, generator)
        crop = as_pixels(image[y0:y1, x0:x1])  # (C, h, w)
        # torch takes half of Pillow's time for grey, and a sixth for colour
        pixels = interpolate(
            crop[None], (self.image_size, self.image_size), mode="bicubic", antialias=True
        )[0]
        if generator.random() < self.flip:
            pixels = pixels.flip(2)
        if pixels.dtype != torch.uint8:  # bicubic overshoots; 8-bit images are clipped already
            pixels = pixels.clamp(0, 255)
        if self.augmentation is not None:
            pixels = self.augmentation(pixels, generator)
        return PretrainSample(pixels, record.key, group_number(record))


def require_picture(record: Record) -> None:
    """Refuse what is not a 2D image of the kinds that stage one takes.

    Raises:
        UserError: The record is a volume, or colour of 16 bits.
    """
    image = record.image
    if (image.ndim == 3 and image.shape[2] != 3) or "axes" in record.meta:
        raise UserError(
            f"record {record.key} is a volume {image.shape}, and stage one takes 2D images; "
            "shard volumes with `shard --layout nifti`"
        )
    if image.ndim == 3 and image.dtype != np.uint8:
        raise UserError(
            f"record {record.key} is a {image.dtype} colour image; stage one takes colour of "
            "8 bits, convert the files and shard again"
        )


def group_number(record: Record) -> int:
    """The record's group in 64 bits; its key, where it has none."""
    name = record.meta.get("group") or record.key
    digest = hashlib.blake2b(str(name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def collate(samples: Sequence[PretrainSample]) -> PretrainBatch:
    """Samples of one size to a batch."""
    images, keys, groups = zip(*samples, strict=True)
    return PretrainBatch(stack_pixels(images), list(keys), torch.tensor(groups))


def random_crop(
    height: int, width: int, min_scale: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) of a random share in [min_scale, 1] of the area, sides 3:4 to 4:3.

    Where ten draws do not fit into an elongated image: the largest box of such sides, anywhere in
    it. What is cropped is then scaled to a square, and never squeezed by more than 4:3.
    """
    for _ in range(10):
        area = height * width * generator.uniform(min_scale, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _anywhere(height, width, h, w, generator)
    w, h = min(width, math.floor(height * 4 / 3)), min(height, math.floor(width * 4 / 3))
    return _anywhere(height, width, max(h, 1), max(w, 1), generator)


def _anywhere(
    height: int, width: int, h: int, w: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    x, y = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
    return x, y, x + w, y + h
