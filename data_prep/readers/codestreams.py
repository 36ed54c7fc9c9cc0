"""Sizes that compressed images name in their own headers, read before a decoder takes memory.

JPEG (ITU-T T.81 B.2), JPEG-LS (T.87 C.1), JPEG 2000 and HTJ2K (T.800 A.5.1, I.5) and JPEG XL
(ISO/IEC 18181-1, SizeHeader).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from data_prep.records import Unreadable

MAX_SCANS = 100
"""Scans of a JPEG. Encoders write about ten; each one more makes a decoder pass over all
coefficients again, in next to no bytes."""
MAX_SEGMENTS = 10_000
"""Segments of a JPEG before its pixels; Pillow keeps tens of times their bytes."""

PIXELS_PER_TILE = 1024
"""JPEG 2000: tiles may not be smaller than this on average, as each takes kilobytes to decode."""
FEW_TILES = 1024
"""So many tiles may be of any size."""

MIN_PRECINCT = 8
"""JPEG 2000: binary logarithm of the samples of its smallest precincts, for the same reason."""

SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's or JPEG-LS's frame header."""
JP2 = b"\0\0\0\x0cjP  "
JXL_CONTAINER = b"\0\0\0\x0cJXL "
JXL_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
"""Width to height of a JPEG XL that names its height only."""


@dataclass(frozen=True)
class Size:
    """What a compressed image says of itself."""

    height: int
    width: int
    samples: int | None
    """Per pixel; None where its header does not begin with it."""


def image_size(data: bytes) -> Size:
    """The size of a compressed image of any of these kinds.

    Raises:
        Unreadable: None of these kinds, a damaged header, or one that asks for more memory or work
            than its pixels do: too many JPEG scans or JPEG 2000 tiles.
    """
    try:
        if data[:2] == b"\xff\xd8":
            check_jpeg(data)
            return _jpeg_size(data)
        if data[:4] == b"\xff\x4f\xff\x51":
            return _jpeg_2000_size(data)
        if data[:8] == JP2:
            return _jpeg_2000_size(next(_boxes(data, b"jp2c")))
        if data[:2] == b"\xff\x0a":
            return _jpeg_xl_size(data)
        if data[:8] == JXL_CONTAINER:
            part = next(_boxes(data, b"jxlc", b"jxlp"))
            return _jpeg_xl_size(part[4:] if part[:2] != b"\xff\x0a" else part)
    except (IndexError, StopIteration) as error:
        raise Unreadable("its compressed pixels end within their header") from error
    raise Unreadable("its compressed pixels have no header that names their size")


def check_jpeg(jpeg: bytes) -> None:
    """Refuse a JPEG of more than `MAX_SCANS` scans or `MAX_SEGMENTS` segments before the first.

    Raises:
        Unreadable: It has more.
    """
    head = takewhile(lambda segment: segment[0] != 0xDA, _segments(jpeg))
    if sum(1 for _ in islice(head, MAX_SEGMENTS + 1)) > MAX_SEGMENTS:
        raise Unreadable(f"a JPEG of more than {MAX_SEGMENTS} segments before its pixels")
    if jpeg.count(b"\xff\xda") > MAX_SCANS:  # of scans, or of thumbnails and texts
        scans = sum(marker == 0xDA for marker, _ in _segments(jpeg))
        if scans > MAX_SCANS:
            raise Unreadable(f"a JPEG of {scans} scans, more than {MAX_SCANS}")


def _segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment of a JPEG, as far as it is whole."""
    position = 2
    while (position := jpeg.find(b"\xff", position)) != -1 and position + 4 <= len(jpeg):
        marker = jpeg[position + 1]
        if marker in (0x00, 0xFF) or 0xD0 <= marker < 0xD9:  # within a scan, or fill bytes
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return
        yield marker, position
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")


def jpeg_frame(jpeg: bytes) -> int:
    """Position of the frame header of a JPEG or JPEG-LS: marker, length, precision, size.

    Raises:
        StopIteration: It has none.
    """
    return next(position for marker, position in _segments(jpeg) if marker in SOF)


def _jpeg_size(data: bytes) -> Size:
    position = jpeg_frame(data)
    height = int.from_bytes(data[position + 5 : position + 7], "big")
    width = int.from_bytes(data[position + 7 : position + 9], "big")
    return Size(height, width, data[position + 9])


def _jpeg_2000_size(data: bytes) -> Size:
    """Of a codestream, whose second marker is SIZ."""
    values = [int.from_bytes(data[start : start + 4], "big") for start in range(8, 40, 4)]
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = values
    size = Size(bottom - top, right - left, int.from_bytes(data[40:42], "big"))
    if data[2:4] != b"\xff\x51" or min(size.height, size.width, tile_width, tile_height) <= 0:
        raise Unreadable("its compressed pixels have a damaged header")
    tiles = -((tile_left - right) // tile_width) * -((tile_top - bottom) // tile_height)
    if tiles > FEW_TILES + size.height * size.width // PIXELS_PER_TILE:
        raise Unreadable(f"a JPEG 2000 of {tiles} tiles, too small to be worth their memory")
    for sizes in _precincts(data, size.samples or 0):
        if any((each & 15) + (each >> 4) < MIN_PRECINCT for each in sizes):
            raise Unreadable("a JPEG 2000 of precincts that are too small to be worth their memory")
    return size


def _precincts(data: bytes, samples: int) -> Iterator[bytes]:
    """Precinct sizes of each coding style of a JPEG 2000, in its header and those of its tiles."""
    position, tile_end = 2, 0
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xD9:
            return
        if marker == 0x93:  # the tile's compressed pixels follow
            if tile_end <= position:
                return
            position = tile_end
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0x90:
            length = int.from_bytes(data[position + 6 : position + 10], "big")
            tile_end = position + length if length else 0
        elif marker in (0x52, 0x53):
            start = position + 4 if marker == 0x52 else position + 5 + (samples > 256)
            first = start + (10 if marker == 0x52 else 6)
            if data[start] & 1:
                yield data[first:end]
        position = end


def _boxes(data: bytes, *names: bytes) -> Iterator[bytes]:
    """Contents of the boxes of some names in a JP2 or JPEG XL file."""
    position = 0
    while position + 8 <= len(data):
        length, start = int.from_bytes(data[position : position + 4], "big"), position + 8
        if length == 1:  # the length follows
            length, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = position + length if length else len(data)
        if end <= position + 7:
            return
        if data[position + 4 : position + 8] in names:
            yield data[start:end]
        position = end


def _jpeg_xl_size(data: bytes) -> Size:
    """Of a codestream; its fields are bits, the lowest of each byte first."""
    if data[:2] != b"\xff\x0a" or len(data) < 4:
        raise IndexError
    bits = int.from_bytes(data[2:16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    def side() -> int:
        if small:
            return 8 * (take(5) + 1)
        return take((9, 13, 18, 30)[take(2)]) + 1

    small = take(1)
    height = side()
    ratio = take(3)
    if ratio:
        over, under = JXL_RATIOS[ratio]
        return Size(height, height * over // under, None)
    return Size(height, side(), None)
