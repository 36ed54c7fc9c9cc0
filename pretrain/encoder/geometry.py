"""SAM's picture frame: the longest side resized to `size`, the rest padded right and below.

Coordinates follow SAM's prompt encoder, which adds one half to what it is given: an integer (x, y)
is the centre of a pixel. Resizing keeps pixel edges, not pixel centres, in proportion, so a point
moves as x' = (x + 0.5) * scale - 0.5 and stays on the same spot of the picture. (SAM's own
`ResizeLongestSide.apply_coords` leaves the half out, and is off by up to half a pixel.) The corners
of a box are edges, not pixels: they lie between pixels, and move as x' = x * scale, as in SAM.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from data_prep.readers.shrink import nearest_pixels

ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[np.generic], Tensor)


@dataclass(frozen=True)
class Resize:
    """The way between an image of `original` size and the (size, size) square SAM sees."""

    original: tuple[int, int]
    """(height, width) of the image, in pixels."""
    size: int
    """Side of the square, in pixels."""

    def __post_init__(self) -> None:
        if min(*self.original, self.size) < 1:
            raise ValueError(f"sizes must be positive: original {self.original}, size {self.size}")

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the image inside the square.

        Equal to SAM's `ResizeLongestSide.get_preprocess_shape`, except that a side which SAM
        would round to nothing keeps one pixel.
        """
        scale = self.size / max(self.original)
        height, width = (max(1, int(side * scale + 0.5)) for side in self.original)
        return height, width

    def image(self, image: Tensor) -> Tensor:
        """Resize and pad an image: (C, h, w) uint8 or float -> (C, size, size) of the same type.

        Bilinear with antialiasing, as SAM's own preprocessing; the padding is 0.
        """
        self._check(image.shape)
        height, width = self.resized
        resized = interpolate(
            image[None], (height, width), mode="bilinear", align_corners=False, antialias=True
        )[0]
        return pad(resized, (0, self.size - width, 0, self.size - height))

    def mask(self, mask: ArrayOrTensor) -> ArrayOrTensor:
        """Resize and pad a mask or label map, nearest neighbour: (..., h, w) -> (..., size, size).

        Each output pixel takes the input pixel under its centre. Padding is 0 (background). Type
        and device are kept.
        """
        self._check(mask.shape)
        height, width = self.resized
        rows = nearest_pixels(self.original[0], height)
        columns = nearest_pixels(self.original[1], width)
        if isinstance(mask, Tensor):
            picked = mask[..., torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]
            return pad(picked, (0, self.size - width, 0, self.size - height))
        picked = mask[..., rows[:, None], columns]
        padding = [(0, 0)] * (mask.ndim - 2) + [(0, self.size - height), (0, self.size - width)]
        return np.pad(picked, padding)

    def points(self, points: ArrayLike) -> NDArray[np.float32]:
        """Map (..., 2) points (x, y) of the image to points of the square, as float32."""
        moved = (np.asarray(points, dtype=np.float64) + 0.5) * self._scale() - 0.5
        return moved.astype(np.float32)

    def boxes(self, boxes: ArrayLike) -> NDArray[np.float32]:
        """Map (..., 4) boxes (x0, y0, x1, y1) to the square, as float32.

        Corners are continuous: the pixel in column x covers x to x + 1.
        """
        moved = np.asarray(boxes, dtype=np.float64) * np.tile(self._scale(), 2)
        return moved.astype(np.float32)

    def valid(self) -> Tensor:
        """(size, size) bool: where the square shows the image and not padding."""
        height, width = self.resized
        valid = torch.zeros(self.size, self.size, dtype=torch.bool)
        valid[:height, :width] = True
        return valid

    def restore(self, logits: ArrayOrTensor) -> ArrayOrTensor:
        """Undo padding and resizing: (..., n, n) float -> (..., h, w), bilinear as in SAM.

        n is `size`, or smaller for a decoder's low-resolution output, which is first brought to
        `size`. Array in, array out; tensor in, tensor out, with gradient.
        """
        if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
            raise ValueError(f"logits have shape {tuple(logits.shape)}; expected (..., n, n)")
        if not isinstance(logits, Tensor):
            return self.restore(torch.from_numpy(np.ascontiguousarray(logits))).numpy()
        height, width = self.resized
        square = logits.reshape(1, -1, *logits.shape[-2:])
        if square.shape[-1] != self.size:
            square = _bilinear(square, (self.size, self.size))
        restored = _bilinear(square[..., :height, :width], self.original)
        return restored.reshape(*logits.shape[:-2], *self.original)

    def _scale(self) -> NDArray[np.float64]:
        """Pixels of the square per pixel of the image, along x and along y."""
        height, width = self.resized
        return np.array([width / self.original[1], height / self.original[0]])

    def _check(self, shape: tuple[int, ...]) -> None:
        if tuple(shape[-2:]) != self.original:
            raise ValueError(f"shape {tuple(shape)} does not end in {self.original}")


def _bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(images, size, mode="bilinear", align_corners=False)
