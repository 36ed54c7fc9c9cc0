"""Stored pixels of a DICOM image, one frame after the other.

What a header claims is compared with the file and with the limits before a decoder sees it, and no
more than one frame is held: large pixel data stay in their file until their turn.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from imagecodecs import jpeg8_decode, jpegls_decode, jpegxl_decode
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import convert_color_space, get_decoder
from pydicom.pixels.utils import as_pixel_options, get_expected_length, get_nr_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from data_prep.readers.codestreams import image_size, jpeg_frame
from data_prep.readers.dicom_header import PIXELS, transfer_syntax
from data_prep.records import Unreadable

UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
"""Transfer syntaxes whose pixels are stored as they are."""

BAND_PIXELS = 1 << 16
"""About so many pixels change their colour space at a time."""
RLE_RATIO = 64
"""Largest factor by which RLE shrinks anything: two bytes for 128."""


def stored_frames(
    dataset: Dataset, max_pixels: int | None = None, max_bytes: int | None = None
) -> Iterator[np.ndarray]:
    """Decode the frames of an image one after the other.

    Returns:
        (H, W) stored values, or (H, W, 3) colours as RGB.

    Raises:
        Unreadable: A damaged header, truncated pixel data, compressed pixels of another size than
            the header's, or more than `max_pixels` per frame or `max_bytes` in all.
        Exception: Of any kind, by a decoder.
    """
    height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if not height * width:
        raise Unreadable("its header gives no size")
    if max_pixels is not None and height * width > max_pixels:
        raise Unreadable(f"{height} x {width} pixels exceed max_pixels")
    frames = get_nr_frames(dataset, warn=False)
    each = height * width * _samples(dataset) * _bytes_per_sample(dataset)
    with _open_pixels(dataset) as (source, length):
        uncompressed = transfer_syntax(dataset) in UNCOMPRESSED
        if uncompressed:
            frames = _whole_frames(dataset, length, frames)
        if max_bytes is not None and frames * each > max_bytes:
            raise Unreadable(f"{frames} frames of {each} bytes exceed max_bytes ({max_bytes})")
        decoded = (_plain_frames if uncompressed else _compressed_frames)(dataset, source, frames)
        for number, frame in enumerate(decoded, 1):
            # a file may hold more frames than its header says
            if max_bytes is not None and number * each > max_bytes:
                raise Unreadable(f"{number} frames of {each} bytes exceed max_bytes ({max_bytes})")
            yield frame


@contextmanager
def _open_pixels(dataset: Dataset) -> Iterator[tuple[BinaryIO, int]]:
    """The pixel data as a file at their first byte, and their length (0 if encapsulated)."""
    name = next(name for name in PIXELS if name in dataset)
    element: Any = dataset.get_item(name, keep_deferred=True)
    if not isinstance(element, RawDataElement) or element.value is not None or not element.length:
        yield io.BytesIO(element.value or b""), len(element.value or b"")
        return
    inflated = getattr(dataset, "buffer", None)
    with nullcontext(inflated) if inflated else Path(dataset.filename).open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(element.value_tell)
        yield file, min(element.length, size - element.value_tell)


def _whole_frames(dataset: Dataset, length: int, frames: int) -> int:
    """How many frames some bytes of uncompressed pixels are: as many as said, or more.

    Raises:
        Unreadable: Fewer, or pixels of another kind than said.
    """
    try:
        expected = get_expected_length(dataset)
    except Exception:  # a damaged header, of which decoding says more
        return frames
    if length < expected:
        raise Unreadable("truncated: some of its pixels are missing")
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        if length >= expected // 2 * 3:
            raise Unreadable("its pixels are not YBR_FULL_422, as its header says")
        return frames
    if length <= expected + expected % 2:
        return frames
    bits = get_expected_length(dataset, "pixels") // frames * int(dataset.BitsAllocated)
    return 8 * length // bits


def _plain_frames(dataset: Dataset, source: BinaryIO, frames: int) -> Iterator[np.ndarray]:
    decoder = get_decoder(transfer_syntax(dataset))
    name = next(name for name in PIXELS if name in dataset)
    element: Any = dataset.get_item(name, keep_deferred=True)
    options = as_pixel_options(dataset, number_of_frames=frames)
    options |= {"pixel_keyword": name, "pixel_vr": str(element.VR)}
    for index in range(frames):
        # each by a call of its own: after one frame of YBR_FULL_422 pydicom miscounts the bytes
        yield _rgb(*next(decoder.iter_array(source, indices=[index], raw=True, **options)))


def _compressed_frames(dataset: Dataset, source: BinaryIO, frames: int) -> Iterator[np.ndarray]:
    options = as_pixel_options(dataset)
    offsets = options.pop("extended_offsets", None)
    for encoded in generate_frames(source, number_of_frames=frames, extended_offsets=offsets):
        _check_size(encoded, dataset)
        yield _decode(encoded, dataset, options)


def _check_size(encoded: bytes, dataset: Dataset) -> None:
    """Compare a compressed frame with the header, before a decoder takes memory for it.

    Raises:
        Unreadable: It is of another size.
    """
    height, width, samples = int(dataset.Rows), int(dataset.Columns), _samples(dataset)
    if transfer_syntax(dataset) == RLELossless:
        planes = samples * _bytes_per_sample(dataset)
        if int.from_bytes(encoded[:4], "little") != planes:
            raise Unreadable("its compressed pixels have another number of bytes than its header")
        if len(encoded) * RLE_RATIO < height * width * planes:
            raise Unreadable("truncated: some of its pixels are missing")
        return
    found = image_size(encoded)
    if (found.height, found.width) != (height, width) or found.samples not in (samples, None):
        raise Unreadable("its pixels cannot be decoded: their own header names another size")


def _decode(encoded: bytes, dataset: Dataset, options: dict[str, Any]) -> np.ndarray:
    """One frame, by the decoder that suits its transfer syntax best."""
    syntax = UID(transfer_syntax(dataset))
    if syntax in BEYOND_PYDICOM:
        return _fitting(BEYOND_PYDICOM[syntax](encoded, dataset), dataset)
    if syntax in EXACT and _samples(dataset) == 1:
        with suppress(Exception):  # where pydicom's decoders fail too, their error counts
            return _fitting(EXACT[syntax](encoded, dataset), dataset)
    single = encapsulate([encoded], has_bot=False)
    try:
        options = options | {"number_of_frames": 1}
        return _rgb(*next(get_decoder(syntax).iter_array(single, raw=True, **options)))
    except Exception:
        if syntax != JPEGExtended12Bit:
            raise
        return _fitting(_decode_jpeg(encoded, dataset), dataset)


def _rgb(frame: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
    """A frame of pydicom's with its colours as RGB, in place.

    Some rows at a time, as pydicom takes many times their memory.
    """
    if properties["photometric_interpretation"] in ("YBR_FULL", "YBR_FULL_422"):
        rows = max(BAND_PIXELS // frame.shape[1], 1)
        for top in range(0, len(frame), rows):
            band = frame[top : top + rows]
            band[...] = convert_color_space(band, "YBR_FULL", "RGB")
    return frame


def _decode_jpeg(encoded: bytes, dataset: Dataset) -> np.ndarray:
    """8 or 12 bits; colours as RGB.

    Raises:
        Unreadable: Its end is missing, over which libjpeg-turbo passes.
    """
    if not _is_whole(encoded):
        raise Unreadable("truncated: some of its pixels are missing")
    # without a marker that names them, libjpeg-turbo takes three components for YCbCr
    named = b"JFIF\0" in encoded[:64] or b"Adobe" in encoded[:64]
    plain = dataset.PhotometricInterpretation == "RGB" and not named
    values = jpeg8_decode(encoded, colorspace="RGB" if plain else None)
    return _signed(values, int(dataset.BitsStored), dataset)


def _decode_jpeg_xl(encoded: bytes, dataset: Dataset) -> np.ndarray:
    """The first frame of a codestream, whose colours are RGB when decoded."""
    return _signed(jpegxl_decode(encoded, index=0), int(dataset.BitsStored), dataset)


def _decode_jpeg_ls(encoded: bytes, dataset: Dataset) -> np.ndarray:
    precision = encoded[jpeg_frame(encoded) + 4]
    return _signed(jpegls_decode(encoded), precision, dataset)


def _decode_lossless_jpeg(encoded: bytes, dataset: Dataset) -> np.ndarray:
    scan = encoded.index(b"\xff\xda")
    shifted = encoded[scan + 1 + int.from_bytes(encoded[scan + 2 : scan + 4], "big")] & 15
    values = jpeg8_decode(encoded)
    if shifted or not _is_whole(encoded) or 8 * values.itemsize != int(dataset.BitsAllocated):
        raise ValueError("decoders differ here")
    values = _signed(values, int(dataset.BitsStored), dataset)
    return values & ((1 << int(dataset.BitsStored)) - 1) if values.dtype.kind == "u" else values


EXACT = {
    JPEGLSLossless: _decode_jpeg_ls,
    JPEGLSNearLossless: _decode_jpeg_ls,
    JPEGLossless: _decode_lossless_jpeg,
    JPEGLosslessSV1: _decode_lossless_jpeg,
}
"""Transfer syntaxes whose pixels any decoder must give alike, by one that is several times faster
than pydicom's; of one sample per pixel."""

BEYOND_PYDICOM = {
    "1.2.840.10008.1.2.4.53": _decode_jpeg,  # progressive by spectral selection; retired
    "1.2.840.10008.1.2.4.55": _decode_jpeg,  # progressive; retired
    "1.2.840.10008.1.2.4.110": _decode_jpeg_xl,  # lossless
    "1.2.840.10008.1.2.4.111": _decode_jpeg_xl,  # made of a JPEG
    "1.2.840.10008.1.2.4.112": _decode_jpeg_xl,
}
"""Transfer syntaxes for which pydicom has no decoder."""


def _signed(values: np.ndarray, bits: int, dataset: Dataset) -> np.ndarray:
    """Decoded values as the header's kind of integers.

    These codestreams hold unsigned values; those of a signed image are two's complements.
    """
    if not int(dataset.PixelRepresentation):
        return values
    values = values.view(f"i{values.itemsize}")
    shift = max(8 * values.itemsize - bits, 0)
    return (values << shift) >> shift


def _fitting(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Decoded values, if they are of the header's shape."""
    samples = _samples(dataset)
    shape = (int(dataset.Rows), int(dataset.Columns), *([samples] if samples > 1 else []))
    if values.shape != shape or values.dtype.kind not in "ui":
        raise Unreadable("its compressed pixels are not those that its header describes")
    return values


def _is_whole(jpeg: bytes) -> bool:
    """Whether a JPEG has its end, behind which there may be a byte or two that fill up."""
    return b"\xff\xd9" in jpeg.rstrip(b"\0")[-4:]


def _samples(dataset: Dataset) -> int:
    return int(dataset.get("SamplesPerPixel") or 1)


def _bytes_per_sample(dataset: Dataset) -> int:
    return max(int(dataset.get("BitsAllocated") or 8) // 8, 1)
