"""Copied files keep what decoding needs, and nothing in which a name could hide."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep.options import ReadOptions
from data_prep.readers.images import read_image
from data_prep.readers.strip import strip_jpeg, strip_png
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
