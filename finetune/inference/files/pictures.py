"""PNG, JPEG, TIFF and the like, and masks as PNG."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path
from data_prep.format.codec import encode_png
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.readers.masks import read_label_map
from data_prep.records import Unreadable
from finetune.inference.files.base import (
    ONLY_OBJECT,
    ImageFile,
    Masks,
    Reading,
    check_unused,
    values_of,
)

LOSSY = (".jpg", ".jpeg")


class PictureFile(ImageFile):
    """A picture."""

    is_volume = False

    def __init__(self, path: Path, reading: Reading) -> None:
        check_unused(reading, path, "a single picture", "slice", "plane", "channel", "series")
        self._pixels = read_image(path, ReadOptions(window=reading.window)).array
        self.depth, self.size = 1, (self._pixels.shape[0], self._pixels.shape[1])

    @property
    def outputs(self) -> tuple[str, ...]:
        """PNG."""
        return (".png",)

    def read(self, depth: int) -> NDArray[Any]:
        """The picture."""
        return self._pixels

    def write(self, masks: Masks, path: Path) -> None:
        """See `write_png`."""
        write_png(masks.labels[0], path, masks.numbered)

    def write_map(self, values: NDArray[np.float32], path: Path) -> None:
        """See `write_png_map`."""
        write_png_map(values[0], path)

    def read_masks(self, path: Path) -> NDArray[np.uint8]:
        """See `read_png`."""
        return read_png(path, self.size)[None]


def write_png(labels: NDArray[np.uint8], path: Path, numbered: bool = False) -> None:
    """Write a mask (H, W) as a grey PNG of the objects' values; object 1 alone is 255, so that it
    can be seen, unless the objects are `numbered`."""
    only = labels.max(initial=0) <= 1 and not numbered
    _write(labels * np.uint8(ONLY_OBJECT) if only else labels, path)


def write_png_map(values: NDArray[np.float32], path: Path) -> None:
    """Write values (H, W) of 0 to 1 as a grey PNG of 0 to 255."""
    _write(np.rint(values * 255).astype(np.uint8), path)


def _write(pixels: NDArray[np.uint8], path: Path) -> None:
    data = encode_png(pixels)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_png(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a mask picture (H, W), of 0 and 255 or of the objects' values.

    Raises:
        UserError: It cannot be read, is blurred, or has another size.
    """
    if path.name.lower().endswith(LOSSY):
        raise UserError(f"{path}: JPEG blurs the edges of a mask; give it as PNG")
    try:
        mask = read_label_map(path, ReadOptions.max_pixels, None, binary=False)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    if mask.shape != size:
        raise UserError(
            f"{path}: is {mask.shape[1]} pixels wide and {mask.shape[0]} high, and the image is"
            f" {size[1]} wide and {size[0]} high"
        )
    return values_of(mask, path)
