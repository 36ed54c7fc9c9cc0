"""Arrays to the bytes stored in a shard, and back."""

import io
import math
import struct
from collections.abc import Callable

import numpy as np
from imagecodecs import png_decode
from PIL import Image

PNG_SIZE = slice(16, 24)
"""Bytes of a PNG file that hold its width and height."""
PNG_LEVEL = 4
"""Of zlib. A CT slice takes 9 ms and 83 kB, at Pillow's level 6 it takes 35 ms and 84 kB."""
MAX_PIXELS = 2**28
"""A PNG that says it has more is refused before memory is taken for it."""


def encode_png(array: np.ndarray) -> bytes:
    """PNG of a uint8 (H, W) or (H, W, 3), or a uint16 (H, W) array."""
    if array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.dtype != np.uint8):
        raise ValueError(f"a PNG cannot hold an array of {array.dtype} with shape {array.shape}")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


def encode_jpeg(array: np.ndarray, quality: int = 95) -> bytes:
    """JPEG of a uint8 (H, W) or (H, W, 3) array."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def encode_npy(array: np.ndarray) -> bytes:
    """NPY (C order) of an array, so that one slice of a volume is one run of bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def decode(extension: str, data: bytes) -> np.ndarray:
    """The array of a `png`, `jpg`, `npy`, `mask.png` or `mask.npy` member.

    PNG goes through libpng, which takes a sixth less time than Pillow.

    Raises:
        ValueError, OSError, RuntimeError, SyntaxError: Damaged bytes.
    """
    if extension.endswith("npy"):
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if extension == "jpg":
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.array(image)  # (H, W) or (H, W, 3)
    size = data[PNG_SIZE]
    if len(size) < 8 or math.prod(struct.unpack(">II", size)) > MAX_PIXELS:
        raise ValueError("not a PNG, or one of more pixels than a record may have")
    return png_decode(data)


NPY_HEAD = 128
"""Bytes that hold the header of an NPY file of three or fewer axes."""


def decode_slices(read: Callable[[int, int], bytes], size: int, slices: slice) -> np.ndarray:
    """Some of the first axis of an NPY file, of which no more than these are read.

    Args:
        read: Function from (offset, count) to bytes of the file.
        size: Size of the file in bytes.
        slices: Which of the first axis; without a step.
    """
    stream = io.BytesIO(read(0, min(NPY_HEAD, size)))
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"NPY version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    first, last, step = slices.indices(shape[0])
    if step != 1:
        raise IndexError(f"slices {slices} have a step")
    count = max(last - first, 0)
    each = int(np.prod(shape[1:])) * dtype.itemsize
    data = read(stream.tell() + first * each, count * each)
    return np.frombuffer(bytearray(data), dtype).reshape(count, *shape[1:])
