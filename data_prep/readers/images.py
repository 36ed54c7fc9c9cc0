"""Photographs and other image files: kept byte for byte where they can be, made upright and plain
where they cannot.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_prep.format.codec import decode, encode_jpeg, encode_png
from data_prep.options import ReadOptions
from data_prep.readers.codestreams import check_jpeg
from data_prep.readers.intensity import intensity_limits, replace_not_finite, to_integers
from data_prep.readers.strip import may_be_turned, strip_jpeg, strip_png, uncompressed_png
from data_prep.records import Unreadable

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")

BLACK = 12
"""Grey values up to this are a camera's black frame."""
NOISE = 0.01
"""Share of a row or column of the frame that may be brighter."""

ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""
TILE_SIDES = (322, 323)
"""TIFF tags: width and length of a tile."""
BAND_PIXELS = 1 << 22
"""About so many pixels of a large picture are converted at a time."""


@dataclass
class Picture:
    """An image file as it is stored."""

    array: np.ndarray
    """(H, W) uint8 or uint16, or (H, W, 3) uint8: the pixels of `encoded`."""
    encoded: tuple[str, bytes]
    """Extension (`png` or `jpg`) and bytes."""


def read_image(
    source: Path | bytes,
    options: ReadOptions,
    max_size: int | None = None,
    crop_border: bool = False,
) -> Picture:
    """Read an image file, whatever its suffix says.

    8-bit grey or RGB PNG and JPEG files that are upright and small enough keep their bytes, less
    EXIF, comments and what follows their end. All others become PNG, or JPEG if they were JPEG:
    transparency is put on black, palettes and CMYK become RGB, grey values of more than 8 bits are
    windowed (`options.window`).

    Args:
        source: A path, or the file's bytes.
        max_size: Longest side in pixels; larger images are scaled down to it.
        crop_border: Cut off a black frame first; the image is then always encoded again.

    Raises:
        Unreadable: Not an image, damaged, several frames, more than `options.max_pixels` or
            `options.max_bytes`, or one that asks for far more memory or work than its pixels.
    """
    if isinstance(source, Path) and source.stat().st_size > options.max_bytes:
        raise Unreadable(f"a file of more bytes than max_bytes ({options.max_bytes})")
    data = source if isinstance(source, bytes) else source.read_bytes()
    image = open_image(data, options.max_pixels, options.max_bytes)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind it
        raise Unreadable(f"holds {frames} frames; split them into files")
    is_jpeg = image.format in ("JPEG", "MPO")
    upright = _is_upright(image, data)
    small = max_size is None or max(image.size) <= max_size
    if upright and small and not crop_border and _is_plain(image, data):
        if is_jpeg:
            return Picture(_pixels(image), ("jpg", strip_jpeg(data)))
        if plain := uncompressed_png(data):
            return Picture(_call(decode, "png", plain), ("png", data))
        return Picture(_call(decode, "png", data), ("png", strip_png(data)))
    if max_size is not None and is_jpeg:
        # a frame takes less than half of each side, or else the image becomes smaller than max_size
        scale = max_size * (2 if crop_border else 1) / max(image.size)
        # decodes at 1/2, 1/4 or 1/8 of the size where that is still enough
        image.draft(None, (round(image.width * scale), round(image.height * scale)))
    if not upright:
        image = _call(ImageOps.exif_transpose, image)
    if crop_border:
        image = _without_border(image)
    if max_size is not None and max(image.size) > max_size:
        image = shrink(image, max_size)
    array = _plain_pixels(image, options)
    if is_jpeg:
        encoded = encode_jpeg(array)
        del image, array  # before as much is taken again
        return Picture(
            _pixels(Image.open(io.BytesIO(encoded), formats=("JPEG",))), ("jpg", encoded)
        )
    return Picture(array, ("png", encode_png(array)))


def open_image(data: bytes, max_pixels: int, max_bytes: int) -> Image.Image:
    """An image file of any of `FORMATS`, its pixels not yet decoded.

    Raises:
        Unreadable: Not an image, more than `max_pixels` or `max_bytes`, or one that asks for far
            more memory or work than its pixels.
    """
    if not data:
        raise Unreadable("the file is empty")
    if data[:2] == b"\xff\xd8":
        check_jpeg(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unreadable("more pixels than any image may have") from error
    except Exception as error:  # Pillow's plugins raise nearly anything for a damaged header
        raise Unreadable("not an image, or a damaged one") from error
    if image.width * image.height > max_pixels:
        raise Unreadable(f"{image.width} x {image.height} pixels exceed max_pixels ({max_pixels})")
    size = image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4)
    if size > max_bytes:
        raise Unreadable(f"{size} bytes of pixels exceed max_bytes ({max_bytes})")
    if image.format == "TIFF":
        _check_tiles(image)
    return image


def _check_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than its picture: libtiff takes memory for one."""
    tags: Any = getattr(image, "tag_v2", {})
    tile = math.prod(int(tags.get(tag) or 0) for tag in TILE_SIDES)
    if tile > max(4 * image.width * image.height, BAND_PIXELS):
        raise Unreadable("a TIFF whose tiles are far larger than its picture")


def _pixels(image: Image.Image) -> np.ndarray:
    return _by_bands(image, np.array)


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """`convert` of some rows after the other.

    On its way out of Pillow a picture takes several times its memory.
    """
    rows = max(BAND_PIXELS // image.width, 1)
    if rows >= image.height:
        return _call(convert, image)
    _call(image.load)
    whole: np.ndarray | None = None
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        array = _call(convert, band)
        if whole is None:
            whole = np.empty((image.height, *array.shape[1:]), array.dtype)
        whole[top : top + rows] = array
    assert whole is not None
    return whole


def _is_upright(image: Image.Image, data: bytes) -> bool:
    # Pillow decodes a PNG to look behind its pixels
    if image.format == "PNG" and not may_be_turned(data):
        return True
    return _call(image.getexif).get(ORIENTATION, 1) == 1


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether the bytes may be kept: 8-bit grey or RGB, no transparency."""
    if image.mode not in ("L", "RGB") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        return data[24] == 8  # bit depth: Pillow reads 16-bit RGB as 8-bit
    return image.format in ("JPEG", "MPO")


def _without_border(image: Image.Image) -> Image.Image:
    """Cut off the rows and columns at the sides that are black but for a few noisy pixels."""
    bright = np.asarray(_call(image.convert, "L")) > BLACK
    rows = np.flatnonzero(bright.mean(axis=1) > NOISE)
    columns = np.flatnonzero(bright.mean(axis=0) > NOISE)
    if not len(rows) or not len(columns):
        return image
    return image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def shrink(image: Image.Image, max_size: int) -> Image.Image:
    """An image whose longest side is `max_size` pixels; more than 8 bits become floats.

    Raises:
        Unreadable: Its pixels are damaged.
    """
    scale = max_size / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    if image.mode in ("1", "P", "PA") or "transparency" in image.info:  # not to be averaged
        image = _call(image.convert, "RGBA" if "transparency" in image.info else "RGB")
    elif image.mode.startswith("I"):
        image = Image.fromarray(_pixels(image).astype(np.float32))
    return _call(image.resize, size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a Pillow method that decodes the image; its errors become `Unreadable`."""
    try:
        return method(*arguments, **options)
    except Exception as error:  # as above, for damaged pixels
        raise Unreadable(f"truncated or damaged pixels ({type(error).__name__})") from error


def _plain_pixels(image: Image.Image, options: ReadOptions) -> np.ndarray:
    """(H, W) or (H, W, 3) integers of an image of any mode."""
    if image.mode.startswith(("I", "F")):
        values = replace_not_finite(_pixels(image))
        return to_integers(values, intensity_limits(values, options.window), options.bits)
    if image.mode == "1":
        return _by_bands(image, lambda band: np.array(band.convert("L")))
    if image.mode == "L" and "transparency" not in image.info:
        return _pixels(image)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA", "P") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La")
        array = _by_bands(image, _on_black)
        same = grey or (image.mode == "P" and (array[..., :1] == array).all())
        return array[..., 0].copy() if same else array
    return _by_bands(image, lambda band: np.array(band.convert("RGB")))


def _on_black(image: Image.Image) -> np.ndarray:
    """(H, W, 3) of an image with transparency."""
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return np.array(Image.alpha_composite(black, image.convert("RGBA")).convert("RGB"))
