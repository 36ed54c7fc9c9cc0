"""A stored image to the encoder's input: random crop, flip, scale, SAM's normalisation."""

import math

import numpy as np
from PIL import Image
from torch import Tensor

from data_prep.errors import UserError
from data_prep.loader import Record
from data_prep.pixels import normalise


class PretrainTransform:
    """Random resized crop and horizontal flip (MAE, arXiv 2111.06377, appendix A.1).

    Args:
        image_size: side of the result in pixels.
        min_scale: smallest share of the image's area that a crop covers.
    """

    def __init__(self, image_size: int, min_scale: float) -> None:
        self.image_size, self.min_scale = image_size, min_scale

    def __call__(self, record: Record, generator: np.random.Generator) -> tuple[Tensor, str]:
        """(3, S, S) float32 and the record's key.

        Raises:
            UserError: the record is a volume, or colour of 16 bits.
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
        box = random_crop(image.shape[0], image.shape[1], self.min_scale, generator)
        if image.dtype != np.uint8:
            # Pillow scales 16-bit images as floats; stored white is the type's maximum.
            image = image.astype(np.float32) * (255.0 / np.iinfo(image.dtype).max)
        side = self.image_size
        scaled = np.asarray(
            Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC, box)
        )
        if generator.random() < 0.5:
            scaled = scaled[:, ::-1]
        return normalise(scaled, None if scaled.dtype == np.uint8 else (0.0, 255.0)), record.key


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
