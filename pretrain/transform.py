"""A stored image to a training sample: random crop, scale, flip.

Samples stay as small as they are stored, grey in one channel and 8 bits in 8 bits, on their way
from the loader's workers to the device, where `normalise_pixels` makes the encoder's input of them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data_prep.common.errors import UserError
from data_prep.loader.dataset import Record
from pretrain.encoder.pixels import as_pixels, stack_pixels


class PretrainTransform:
    """Random resized crop and horizontal flip (MAE, arXiv 2111.06377, appendix A.1).

    Args:
        image_size: Side of the result in pixels.
        min_scale: Smallest share of the image's area that a crop covers.
    """

    def __init__(self, image_size: int, min_scale: float) -> None:
        self.image_size, self.min_scale = image_size, min_scale

    def __call__(self, record: Record, generator: np.random.Generator) -> tuple[Tensor, str]:
        """(1, S, S) grey or (3, S, S) RGB in 0..255, and the record's key.

        uint8, or float32 of a 16-bit image.

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
        height, width = image.shape[:2]
        x0, y0, x1, y1 = random_crop(height, width, self.min_scale, generator)
        crop = as_pixels(image[y0:y1, x0:x1])  # (C, h, w)
        # torch takes half of Pillow's time for grey, and a sixth for colour
        pixels = interpolate(
            crop[None], (self.image_size, self.image_size), mode="bicubic", antialias=True
        )[0]
        if generator.random() < 0.5:
            pixels = pixels.flip(2)
        # bicubic overshoots; 8-bit images are clipped already
        return pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 255), record.key


def collate(samples: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    """Samples of one size to a batch: see `stack_pixels`, and their keys."""
    images, keys = zip(*samples, strict=True)
    return stack_pixels(images), list(keys)


def random_crop(
    height: int, width: int, min_scale: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Box (x0, y0, x1, y1) of a random share in [min_scale, 1] of the area, sides 3:4 to 4:3.

    The whole image, where ten draws do not fit into it.
    """
    for _ in range(10):
        area = height * width * generator.uniform(min_scale, 1.0)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x = int(generator.integers(width - w + 1))
            y = int(generator.integers(height - h + 1))
            return x, y, x + w, y + h
    return 0, 0, width, height
