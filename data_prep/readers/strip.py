"""Encoded images without what may identify a patient: texts, EXIF, comments, appended data."""

from data_prep.records import Unreadable

PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs"}
"""Chunks that may stay in a copied PNG: none of them holds text."""


def strip_png(data: bytes) -> bytes:
    """A PNG less text, EXIF, time and whatever follows its end.

    Raises:
        Unreadable: Its chunks are damaged.
    """
    kept = [data[:8]]
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end > len(data):
            break
        if kind in PNG_CHUNKS:
            kept.append(data[position:end])
        if kind == b"IEND":
            return b"".join(kept)
        position = end
    raise Unreadable("truncated PNG")


def strip_jpeg(data: bytes) -> bytes:
    """A JPEG less EXIF, XMP, colour profiles, comments and whatever follows its end.

    Raises:
        Unreadable: Its segments are damaged.
    """
    kept = [data[:2]]
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
        # APP0 is JFIF, APP14 names the colour transform; the others and COM hold text
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(data[position:end])
        position = end
    if data[position : position + 2] == b"\xff\xd9":
        return b"".join([*kept, b"\xff\xd9"])
    raise Unreadable("truncated JPEG")


def _scan_end(data: bytes, position: int) -> int:
    while (position := data.find(b"\xff", position)) != -1 and position + 1 < len(data):
        if data[position + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8)):
            return position
        position += 1 if data[position + 1] == 0xFF else 2
    raise Unreadable("truncated JPEG")
