"""Copied files keep what decoding needs, and nothing in which a name could hide."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.format.codec import decode
from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.readers.strip import strip_jpeg, strip_png, uncompressed_png
from data_prep.records import Unreadable

NAME = b"Jane Roe 19700101"


def picture(channels=3):
    y, x = np.mgrid[:48, :64]
    return np.stack([(3 * x + 2 * y + 40 * k) % 200 for k in range(channels)], -1).astype(np.uint8)


def jpeg(**options):
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def after_start(*segments):
    """A JPEG with segments before all of its own but APP0."""
    data = jpeg()
    end = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:end] + b"".join(segments) + data[end:]


def with_thumbnail():
    """A JFIF header that carries a thumbnail of its own."""
    data = jpeg()
    end = 4 + struct.unpack(">H", data[4:6])[0]
    pixels = NAME.ljust(18, b" ")
    header = data[6:18] + bytes([3, 2]) + pixels
    return data[:2] + segment(0xE0, header) + data[end:]


JPEGS = {
    "thumbnail in JFIF": with_thumbnail(),
    "JFXX": after_start(segment(0xE0, b"JFXX\0\x13\x03\x02" + NAME.ljust(18, b" "))),
    "text in a second APP0": after_start(segment(0xE0, NAME)),
    "text behind Adobe": after_start(segment(0xEE, b"Adobe\0\x64" + bytes(4) + b"\x01" + NAME)),
    "text in APP14": after_start(segment(0xEE, NAME)),
    "EXIF": after_start(segment(0xE1, b"Exif\0\0" + NAME)),
    "APP11": after_start(segment(0xEB, NAME)),
    "comment": after_start(segment(0xFE, NAME)),
    "APP15": after_start(segment(0xEF, NAME)),
    "after its end": jpeg() + NAME,
    "progressive": jpeg(progressive=True, comment=NAME),
    "restarts": jpeg(restart_marker_blocks=2, comment=NAME),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_keeps_its_pixels_and_no_text(kind):
    data = JPEGS[kind]
    stripped = strip_jpeg(data)
    assert NAME not in stripped and (NAME in data or kind in ("progressive", "restarts"))
    before, after = (np.array(Image.open(io.BytesIO(each))) for each in (data, stripped))
    assert np.array_equal(before, after)
    assert strip_jpeg(stripped) == stripped
    assert np.array_equal(read_image(data, ReadOptions()).array, after)


def test_the_colour_transform_that_adobe_names_is_kept():
    """Without APP14 a decoder takes these three components for YCbCr."""
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "JPEG", quality=95, keep_rgb=True)
    data = stream.getvalue()
    assert b"Adobe" in data
    stripped = strip_jpeg(data)
    assert np.abs(np.array(Image.open(io.BytesIO(stripped))).astype(int) - picture()).mean() < 3


def png(idat_tail=b"", chunks=()):
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "PNG")
    data, found = stream.getvalue(), []
    position = 8
    while position < len(data):
        size = struct.unpack(">I", data[position : position + 4])[0]
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    found = [(name, body + idat_tail if name == b"IDAT" else body) for name, body in found]
    found[1:1] = chunks
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in found
    )


PNGS = {
    "behind the compressed pixels": png(idat_tail=NAME),
    "text": png(chunks=[(b"tEXt", b"Name\0" + NAME)]),
    "a chunk of its own": png(chunks=[(b"prVt", NAME)]),
    "pHYs too long": png(chunks=[(b"pHYs", bytes(9) + NAME)]),
    "gAMA too long": png(chunks=[(b"gAMA", struct.pack(">I", 45455) + NAME)]),
    "palette of an RGB image": png(chunks=[(b"PLTE", NAME.ljust(18, b" "))]),
    "after its end": png() + NAME,
}


@pytest.mark.parametrize("kind", PNGS)
def test_a_png_keeps_its_pixels_and_no_text(kind):
    data = PNGS[kind]
    assert NAME in data
    stripped = strip_png(data)
    assert NAME not in stripped
    assert np.array_equal(np.array(Image.open(io.BytesIO(stripped))), picture())
    assert strip_png(stripped) == stripped


def test_a_plain_file_is_kept_byte_for_byte():
    assert strip_png(png()) == png()
    assert strip_jpeg(jpeg()) == jpeg()


def test_pixels_that_inflate_beyond_the_image_are_refused():
    """A megabyte of zeros behind the rows that the header announces."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    bodies = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in bodies
    )
    with pytest.raises(Unreadable, match="damaged"):
        strip_png(data)


def plain_png(array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 3), (1, 1), (700, 900)])
def test_a_png_with_its_pixels_uncompressed_is_the_same_image(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = plain_png(array, dpi=(72, 72))
    assert (data.count(b"IDAT") > 1) == (shape == (700, 900))
    uncompressed = uncompressed_png(data)
    assert uncompressed is not None
    assert np.array_equal(decode("png", uncompressed), array)
    picture = read_image(data, ReadOptions())
    assert picture.encoded == ("png", data) and np.array_equal(picture.array, array)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def grey_png(pixels, before=b"", between=b"", size=8):
    """A grey PNG of a zlib stream in two chunks."""
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    parts = chunk(b"IDAT", pixels[:9]) + between + chunk(b"IDAT", pixels[9:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + parts + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + bytes(range(row, row + 8)) for row in range(8))
STREAM = zlib.compress(ROWS)
NARROW = zlib.compressobj(wbits=9)
ODD = {
    "text": (grey_png(STREAM, chunk(b"tEXt", b"Name\0" + NAME)), True),
    "text between the pixels": (grey_png(STREAM, between=chunk(b"tEXt", b"a\0b")), False),
    "behind the pixels": (grey_png(STREAM + NAME), True),
    "behind the end": (grey_png(STREAM) + NAME, True),
    "a window of 512 bytes": (
        grey_png(NARROW.compress(bytes(65 * 64)) + NARROW.flush(), size=64),
        None,
    ),
    "checksum of a chunk": (grey_png(STREAM).replace(STREAM[9:], STREAM[9:-1] + b"x"), False),
    "checksum of the pixels": (grey_png(STREAM[:-1] + b"x"), False),
    "too few pixels": (grey_png(zlib.compress(ROWS[:-9])), False),
    "too many pixels": (grey_png(zlib.compress(ROWS + bytes(9))), False),
    "no end": (grey_png(STREAM)[:-12], False),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_png_is_decoded_as_it_is(kind):
    data, readable = ODD[kind]
    assert uncompressed_png(data) is None
    if readable:
        assert read_image(data, ReadOptions()).array[7, 7] == 14
    elif readable is False:
        with pytest.raises(Unreadable):
            read_image(data, ReadOptions())
