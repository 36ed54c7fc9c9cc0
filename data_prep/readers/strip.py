"""Encoded images with what decoding needs and no more, since all else may identify a patient.

Texts, EXIF, colour profiles, comments, thumbnails, and what lies behind the end of the file or of
its compressed pixels are dropped. Text between the last coded block of a JPEG and the next marker
is not found: only a decoder knows where that block ends.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from imagecodecs import DeflateError, deflate_decode, deflate_encode

from data_prep.records import Unreadable

CHUNK_SIZES = {
    b"IHDR": (13,),
    b"gAMA": (4,),
    b"cHRM": (32,),
    b"sRGB": (1,),
    b"sBIT": (1, 2, 3, 4),
    b"pHYs": (9,),
    b"IEND": (0,),
}
"""Sizes of the chunks that stay in a PNG besides IDAT and PLTE; a longer one could hold text."""
MAX_UNCOMPRESSED = 1 << 25
"""Pixels of more bytes than this are not held a second time."""
ORIENTING = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
"""Chunks of a PNG in which Pillow looks for EXIF and XMP."""
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel by colour type of a PNG."""
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""Passes of an interlaced PNG: first column and row, and steps along them."""

DECODING = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD} - {0xC8}
"""Markers of a JPEG whose segments decoding needs: frames, scans, tables, restart intervals."""
JFIF = b"JFIF\0"
ADOBE = b"Adobe"


def may_be_turned(data: bytes) -> bool:
    """Whether a PNG has a chunk that may say how the picture is to be turned: EXIF or a text."""
    return any(name in ORIENTING for name, _, _ in _chunks(data))


def strip_png(data: bytes) -> bytes:
    """A PNG of 8-bit grey, RGB or palette with its pixels and no text.

    Raises:
        Unreadable: Its chunks or its compressed pixels are damaged.
    """
    chunks = list(_chunks(data))
    header = b"".join(data[start + 8 : end - 4] for name, start, end in chunks if name == b"IHDR")
    if len(header) != 13 or chunks[-1][0] != b"IEND":
        raise Unreadable("truncated PNG")
    pixels = b"".join(data[start + 8 : end - 4] for name, start, end in chunks if name == b"IDAT")
    size = _compressed_size(pixels, header)
    kept = [data[:8]]
    for name, start, end in chunks:
        palette = name == b"PLTE" and header[9] == 3
        whole = name == b"IDAT" and size == len(pixels)
        if palette or whole or end - start - 12 in CHUNK_SIZES.get(name, ()):
            kept.append(data[start:end])
        elif name == b"IDAT" and pixels:  # all pixels in one chunk, without what follows them
            body = name + pixels[:size]
            kept += [struct.pack(">I", size), body, struct.pack(">I", zlib.crc32(body))]
            pixels = b""
    return b"".join(kept)


def uncompressed_png(data: bytes) -> bytes | None:
    """The same PNG with its pixels not compressed, which libpng then decodes in half the time.

    libdeflate inflates more than twice as fast as libpng does, and what `strip_png` would check is
    known afterwards.

    Returns:
        None for a file that is damaged or large, or that `strip_png` would not keep as it is.
    """
    chunks = list(_chunks(data))
    names = [name for name, _, _ in chunks]
    count = names.count(b"IDAT")
    if not count or names[0] != b"IHDR" or names[-1] != b"IEND" or chunks[-1][2] != len(data):
        return None
    first = names.index(b"IDAT")
    last = first + count
    if names[first:last] != [b"IDAT"] * count or any(
        end - start - 12 not in CHUNK_SIZES.get(name, ())
        for name, start, end in chunks[:first] + chunks[last:]
    ):
        return None
    for _, start, end in chunks[first:last]:
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
    pixels = b"".join(data[start + 8 : end - 4] for _, start, end in chunks[first:last])
    size = _raw_size(data[16:29])
    window = 1 << ((pixels[0] >> 4) + 8) if pixels else 0  # libdeflate does not keep to it
    rows = _inflate(pixels, size) if size <= MAX_UNCOMPRESSED else None
    if rows is None or window < min(size, 1 << 15):
        return None
    body = b"IDAT" + deflate_encode(rows, 0)
    chunk = [struct.pack(">I", len(body) - 4), body, struct.pack(">I", zlib.crc32(body))]
    return b"".join([data[: chunks[first][1]], *chunk, data[chunks[last - 1][2] :]])


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each whole chunk up to the end of the image, IEND."""
    position, name = 8, b""
    while name != b"IEND" and position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return
        name = data[position + 4 : position + 8]
        yield name, position, end
        position = end


def _compressed_size(pixels: bytes, header: bytes) -> int:
    """Bytes of the zlib stream that `pixels` begins with.

    Raises:
        Unreadable: It is damaged, or inflates to more than the image that the header describes.
    """
    expected = _raw_size(header)
    if _inflate(pixels, expected) is not None:
        return len(pixels)
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(pixels, expected + 1)
    except zlib.error as error:
        raise Unreadable("truncated or damaged pixels (zlib)") from error
    if len(inflated) != expected or not stream.eof:
        raise Unreadable("truncated or damaged pixels (not as many as its header says)")
    return len(pixels) - len(stream.unused_data)


def _inflate(pixels: bytes, size: int) -> bytes | None:
    """What a zlib stream gives, if that is `size` bytes, and nothing follows the stream."""
    with suppress(DeflateError):  # twice as fast as zlib, but does not say where the stream ends
        inflated = bytes(deflate_decode(pixels, out=size))
        if len(inflated) == size and pixels[-4:] == struct.pack(">I", zlib.adler32(inflated)):
            return inflated  # it ends with its checksum
    return None


def _raw_size(header: bytes) -> int:
    """Bytes of a PNG's rows with their filter bytes."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    size = 0
    for column, row, right, down in passes:
        columns, rows = -((column - width) // right), -((row - height) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * depth * SAMPLES.get(colour, 1) + 7) // 8)
    return size


def strip_jpeg(data: bytes) -> bytes:
    """A JPEG with its pixels and no text.

    Raises:
        Unreadable: Its segments are damaged.
    """
    kept = [data[:2]]
    applications: set[bytes] = set()
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0xD9:
            return b"".join([*kept, data[position : position + 2]])
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # the scan runs on to the next marker that is neither RSTn nor stuffing
            end = _scan_end(data, end)
        if marker in DECODING:
            kept.append(data[position:end])
        else:
            application = _plain_application(data[position:end])
            if application and application[4:9] not in applications:
                applications.add(application[4:9])
                kept.append(application)
        position = end
    if data[position : position + 2] == b"\xff\xd9":
        return b"".join([*kept, b"\xff\xd9"])
    raise Unreadable("truncated JPEG")


def _plain_application(segment: bytes) -> bytes:
    """The JFIF header without its thumbnail, or Adobe's colour transform; nothing of all others."""
    if segment[1] == 0xE0 and segment[4:9] == JFIF and len(segment) >= 18:
        return segment[:2] + struct.pack(">H", 16) + segment[4:16] + bytes(2)
    if segment[1] == 0xEE and segment[4:9] == ADOBE and len(segment) >= 16:
        return segment[:2] + struct.pack(">H", 14) + segment[4:16]
    return b""


def _scan_end(data: bytes, position: int) -> int:
    while (position := data.find(b"\xff", position)) != -1 and position + 1 < len(data):
        if data[position + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8)):
            return position
        position += 1 if data[position + 1] == 0xFF else 2
    raise Unreadable("truncated JPEG")
