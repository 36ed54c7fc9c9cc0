"""Arrays to the bytes stored in a shard, and back."""

import io

import numpy as np
from PIL import Image


def encode_png(array: np.ndarray) -> bytes:
    """PNG of a uint8 (H, W) or (H, W, 3), or a uint16 (H, W) array."""
    if array.dtype not in (np.uint8, np.uint16) or (array.ndim == 3 and array.dtype != np.uint8):
        raise ValueError(f"no PNG for an array of {array.dtype} with shape {array.shape}")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
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
    """The array of a `png`, `jpg`, `npy`, `mask.png` or `mask.npy` member."""
    if extension.endswith("npy"):
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    formats = ("JPEG",) if extension == "jpg" else ("PNG",)
    with Image.open(io.BytesIO(data), formats=formats) as image:
        return np.array(image)  # (H, W) or (H, W, 3)


def npy_layout(head: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and offset of the data of an NPY file, from its first bytes."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"NPY version {version}")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype, stream.tell()
