"""Transfer syntaxes that pydicom cannot decode, or that another decoder decodes faster."""

from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.pixels import iter_pixels
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSNearLossless

from data_prep.readers import dicom_pixels
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import read_header
from data_prep.readers.dicom_pixels import stored_frames
from data_prep.records import Unreadable

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
PROGRESSIVE = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
JPEG_XL = ("1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112")
RGB = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}


def smooth(top=255, channels=1, shape=(40, 56)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    levels = [(x * (k + 1) + y * 2) / (shape[1] * 3 + shape[0] * 2) * top for k in range(channels)]
    return np.dstack(levels).squeeze().astype(np.uint8 if top < 256 else np.uint16)


def twelve_bits(signed=0):
    return {
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": signed,
    }


@pytest.mark.parametrize("syntax", PROGRESSIVE)
def test_progressive_jpeg_of_twelve_bits(syntax, tmp_path, compress):
    encoded = imagecodecs.jpeg8_encode(smooth(4095), level=100, bitspersample=12)
    path = compress(tmp_path / "a", [encoded], syntax, **twelve_bits())
    (frame,) = stored_frames(read_header(path))
    assert np.array_equal(frame, imagecodecs.jpeg8_decode(encoded))
    assert np.abs(frame.astype(int) - smooth(4095)).max() <= 8
    (shown,) = read_frames(read_header(path), 16, (0.0, 4095.0))
    assert np.abs(shown.image / 65535 * 4095 - frame).max() <= 0.1


@pytest.mark.parametrize("syntax", [*PROGRESSIVE, JPEGExtended12Bit])
@pytest.mark.parametrize("stored", ["RGB", "YBR_FULL"])
def test_jpeg_colours_become_rgb(stored, syntax, tmp_path, compress):
    """Twelve bits, for which pydicom has no decoder of colours either."""
    space = {"RGB": "RGB", "YBR_FULL": "YCbCr"}[stored]
    colours = smooth(4095, 3)
    encoded = imagecodecs.jpeg8_encode(colours, 100, bitspersample=12, outcolorspace=space)
    header = {**twelve_bits(), **RGB, "PhotometricInterpretation": stored}
    path = compress(tmp_path / "a", [encoded], syntax, **header)
    (shown,) = read_frames(read_header(path))
    assert shown.image.dtype == np.uint8 and shown.image.shape == (40, 56, 3)
    assert np.abs(shown.image - colours / 4095 * 255).max() <= 3


def test_colours_without_a_marker_are_what_the_header_says(tmp_path, compress):
    """libjpeg-turbo takes three components for YCbCr, but the header says RGB."""
    colours = smooth(255, 3)
    encoded = imagecodecs.jpeg8_encode(colours, 100, colorspace="RGB", outcolorspace="RGB")
    start = encoded.index(b"\xff\xee")  # Adobe's segment names the colours
    size = 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
    bare = bytearray(encoded[:start] + encoded[start + size :])
    frame, scan = bare.index(b"\xff\xc0"), bare.index(b"\xff\xda")
    for number in range(3):  # components are called R, G and B, which also names the colours
        bare[frame + 10 + 3 * number] = bare[scan + 5 + 2 * number] = number + 1
    path = compress(tmp_path / "a", [bytes(bare)], PROGRESSIVE[1], **RGB)
    (shown,) = read_frames(read_header(path))
    assert np.abs(shown.image.astype(int) - colours).max() <= 3


def test_a_jpeg_that_was_cut_is_refused(tmp_path, compress):
    encoded = imagecodecs.jpeg8_encode(smooth(4095), level=100, bitspersample=12)
    path = compress(tmp_path / "a", [encoded[:-200]], PROGRESSIVE[1], **twelve_bits())
    with pytest.raises(Unreadable, match="truncated"):
        list(read_frames(read_header(path)))


def test_extended_jpeg_that_pydicom_cannot_decode():
    dataset = pydicom.dcmread(FILES / "JPEG-lossy.dcm")
    with pytest.raises(RuntimeError):
        list(iter_pixels(dataset))
    (frame,) = stored_frames(read_header(FILES / "JPEG-lossy.dcm"))
    (almost,) = iter_pixels(pydicom.dcmread(FILES / "JPGExtended.dcm"))  # the same image, corrected
    assert np.abs(frame.astype(int) - almost).max() <= 1


@pytest.mark.parametrize("syntax", JPEG_XL)
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_jpeg_xl_gives_the_values_that_were_encoded(signed, bits, syntax, tmp_path, compress):
    container = np.uint8 if bits == 8 else np.uint16
    image = np.random.default_rng(bits).integers(0, 1 << bits, (40, 56)).astype(container)
    encoded = imagecodecs.jpegxl_encode(image, lossless=True, bitspersample=bits)
    header = {
        "BitsAllocated": 8 * image.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": signed,
    }
    path = compress(tmp_path / "a", [encoded, encoded], syntax, **header)
    first, second = stored_frames(read_header(path))
    expected = image.astype(int)
    if signed:  # two's complements
        expected = np.where(expected >= 1 << (bits - 1), expected - (1 << bits), expected)
    assert np.array_equal(first, expected) and np.array_equal(second, expected)
    assert first.dtype == np.dtype(f"{'ui'[signed]}{image.itemsize}")


def test_jpeg_xl_colours_and_those_made_of_a_jpeg(tmp_path, compress):
    colours = smooth(255, 3)
    path = compress(tmp_path / "a", [imagecodecs.jpegxl_encode(colours)], JPEG_XL[0], **RGB)
    (shown,) = read_frames(read_header(path))
    assert np.array_equal(shown.image, colours)
    jpeg = imagecodecs.jpeg8_encode(colours, level=100, subsampling="444")
    header = {**RGB, "PhotometricInterpretation": "YBR_FULL"}
    encoded = imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True)
    path = compress(tmp_path / "a", [encoded], JPEG_XL[1], **header)
    (shown,) = read_frames(read_header(path))
    assert np.abs(shown.image.astype(int) - colours).max() <= 4


FASTER = {
    "JPEG-LS": (imagecodecs.jpegls_encode, "1.2.840.10008.1.2.4.80"),
    "near-lossless": (partial(imagecodecs.jpegls_encode, level=3), JPEGLSNearLossless),
    "lossless JPEG": (
        partial(imagecodecs.jpeg8_encode, lossless=True, predictor=6),
        JPEGLossless,
    ),
    "first order": (
        partial(imagecodecs.jpeg8_encode, lossless=True, predictor=1),
        JPEGLosslessSV1,
    ),
}


@pytest.mark.parametrize("kind", FASTER)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_faster_decoders_give_what_pydicom_s_give(
    signed, bits, kind, tmp_path, compress, monkeypatch
):
    encode, syntax = FASTER[kind]
    container = np.uint8 if bits == 8 else np.uint16
    levels = smooth((1 << bits) - 1).astype(int)
    noise = np.random.default_rng(0).integers(0, 9, levels.shape)
    image = ((levels + noise) % (1 << bits)).astype(container)
    encoded = (
        encode(image) if "JPEG-LS" in kind or "near" in kind else encode(image, bitspersample=bits)
    )
    header = {
        "BitsAllocated": 8 * image.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": signed,
    }
    path = compress(tmp_path / "a", [encoded], syntax, **header)
    (expected,) = iter_pixels(pydicom.dcmread(path))
    monkeypatch.setattr(dicom_pixels, "get_decoder", lambda *_: pytest.fail("the slow one"))
    (frame,) = stored_frames(read_header(path))
    assert frame.dtype == expected.dtype and np.array_equal(frame, expected)
    assert len(np.unique(frame)) > 50


@pytest.mark.parametrize("transform", [0, 2])
def test_a_point_transform_is_left_to_pydicom(transform, tmp_path, compress):
    """Decoders differ in its first prediction."""
    encoded = bytearray(imagecodecs.jpeg8_encode(smooth(4095), lossless=True, bitspersample=12))
    scan = encoded.index(b"\xff\xda")
    encoded[scan + 1 + int.from_bytes(encoded[scan + 2 : scan + 4], "big")] = transform
    path = compress(tmp_path / "a", [bytes(encoded)], JPEGLosslessSV1, **twelve_bits())
    (expected,) = iter_pixels(pydicom.dcmread(path))
    (frame,) = stored_frames(read_header(path))
    assert np.array_equal(frame, expected)
