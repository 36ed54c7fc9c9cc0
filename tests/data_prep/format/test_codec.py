"""Stored bytes become the pixels that Pillow and NumPy give, and damaged ones are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.format.codec import decode, encode_jpeg, encode_npy, encode_png


def noise(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(array, interlaced=False, chunks=()):
    """A PNG written by hand: each row with another filter, and further chunks before the pixels."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    depth = 8 * array.itemsize
    steps = [(0, 0, 1, 1)]
    if interlaced:  # x, y, step in x, step in y of Adam7's passes
        steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        steps += [(1, 0, 2, 2), (0, 1, 1, 2)]
    rows = b""
    for x, y, right, down in steps:
        part = array[y::down, x::right]
        rows += b"".join(
            b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in part
        )
    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 3: 2}[channels], 0, 0, interlaced)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "array", [noise((37, 53)), noise((37, 53), np.uint16), noise((37, 53, 3)), noise((1, 1))]
)
def test_png_that_others_wrote(array, interlaced):
    """Colour management does not change values: a gamma chunk and white point are ignored."""
    chunks = [
        (b"gAMA", struct.pack(">I", 100000)),
        (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
    ]
    data = png(array, interlaced, chunks)
    decoded = decode("png", data)
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == array.dtype
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded, np.array(image))


@pytest.mark.parametrize("extension", ["png", "mask.png"])
@pytest.mark.parametrize(
    "array",
    [noise((40, 50)), noise((40, 50), np.uint16), noise((40, 50, 3)), np.eye(9, dtype="u1")],
)
def test_png_that_we_write(array, extension):
    decoded = decode(extension, encode_png(array))
    np.testing.assert_array_equal(decoded, array)
    assert decoded.dtype == array.dtype
    assert decoded.flags.c_contiguous and decoded.flags.writeable


def test_npy_and_jpeg():
    volume = noise((3, 8, 9), np.uint16)
    np.testing.assert_array_equal(decode("mask.npy", encode_npy(volume)), volume)
    for array in (noise((40, 50)), noise((40, 50, 3))):
        data = encode_jpeg(array)
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode("jpg", data), np.array(image))


def bomb():
    data = bytearray(png(noise((4, 4))))
    data[16:24] = struct.pack(">II", 2**30, 2**30)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG",
        bomb(),
        encode_png(noise((64, 64)))[:-600],
        encode_jpeg(noise((9, 9))),
        b"x" * 99,
    ],
    ids=["empty", "short", "bomb", "truncated", "jpeg", "text"],
)
def test_what_is_no_whole_png_is_refused(data):
    with pytest.raises((ValueError, RuntimeError)):
        decode("png", data)


def test_a_changed_byte_is_refused():
    data = bytearray(encode_png(noise((64, 64))))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(RuntimeError):
        decode("png", bytes(data))
