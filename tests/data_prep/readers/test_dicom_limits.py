"""DICOM files that claim more than they hold, or hold more than they may: refused undecoded."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.readers import dicom_pixels
from data_prep.readers.codestreams import MAX_SCANS, Size, image_size
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import HELD_BYTES, read_header
from data_prep.records import Unreadable

ROOT = Path(__file__).parents[3]
JPEG_XL = "1.2.840.10008.1.2.4.110"


def values(shape=(40, 56), top=255, dtype=np.uint8):
    return (np.arange(np.prod(shape)).reshape(shape) % (top + 1)).astype(dtype)


ENCODERS = {
    "JPEG": (imagecodecs.jpeg8_encode, JPEGBaseline8Bit),
    "lossless JPEG": (
        lambda image: imagecodecs.jpeg8_encode(image, lossless=True),
        JPEGLosslessSV1,
    ),
    "JPEG-LS": (imagecodecs.jpegls_encode, JPEGLSLossless),
    "JPEG 2000": (
        lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k"),
        JPEG2000Lossless,
    ),
    "JP2": (partial(imagecodecs.jpeg2k_encode, codecformat="jp2"), JPEG2000Lossless),
    "JPEG XL": (imagecodecs.jpegxl_encode, JPEG_XL),
    "JPEG XL in boxes": (partial(imagecodecs.jpegxl_encode, usecontainer=True), JPEG_XL),
}


@pytest.mark.parametrize("shape", [(40, 56), (41, 57), (300, 400), (90, 160), (16, 2000)])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", ENCODERS)
def test_the_size_of_a_compressed_image_is_read_from_its_header(kind, samples, shape):
    encode, _ = ENCODERS[kind]
    image = values(shape) if samples == 1 else np.dstack([values(shape)] * 3)
    found = image_size(encode(image))
    assert (found.height, found.width) == shape
    assert found.samples == (None if kind.startswith("JPEG XL") else samples)


def test_a_jpeg_xl_may_name_its_height_and_a_ratio():
    for width, height in ((100, 100), (120, 100), (400, 300), (150, 100), (1600, 900), (200, 100)):
        assert image_size(imagecodecs.jpegxl_encode(values((height, width)))) == Size(
            height, width, None
        )


@pytest.mark.parametrize("kind", ENCODERS)
def test_compressed_pixels_of_another_size_reach_no_decoder(kind, tmp_path, compress, monkeypatch):
    encode, syntax = ENCODERS[kind]
    right = compress(tmp_path / "right", [encode(values())], syntax)
    wrong = compress(tmp_path / "wrong", [encode(values((56, 40)))], syntax)
    (frame,) = read_frames(read_header(right))
    assert frame.image.shape == (40, 56)
    monkeypatch.setattr(dicom_pixels, "_decode", lambda *_: pytest.fail("reached a decoder"))
    with pytest.raises(Unreadable, match="their own header names another size"):
        list(read_frames(read_header(wrong)))


def test_a_run_length_frame_that_cannot_hold_its_pixels_is_refused(tmp_path, compress):
    empty = bytes([1, *[0] * 63]) + b"\x81\0"
    path = compress(tmp_path / "a", [empty], RLELossless, like=(100, 100))
    with pytest.raises(Unreadable, match="some of its pixels are missing"):
        list(read_frames(read_header(path)))
    path = compress(tmp_path / "a", [bytes([9, *[0] * 99])], RLELossless)
    with pytest.raises(Unreadable, match="another number of bytes"):
        list(read_frames(read_header(path)))


def test_a_jpeg_2000_of_tiny_tiles_is_refused():
    data = bytearray(imagecodecs.jpeg2k_encode(values((200, 200)), codecformat="j2k"))
    assert image_size(bytes(data)) == Size(200, 200, 1)
    data[24:32] = bytes([0, 0, 0, 1] * 2)
    with pytest.raises(Unreadable, match="a JPEG 2000 of 40000 tiles"):
        image_size(bytes(data))


@pytest.mark.parametrize("place", ["header", "tile"])
def test_a_jpeg_2000_of_tiny_precincts_is_refused(place):
    """157 bytes of it took half a gigabyte."""
    data = imagecodecs.jpeg2k_encode(values((200, 200)), codecformat="j2k")
    start, tile = data.index(b"\xff\x52"), data.index(b"\xff\x90")
    style = bytearray(data[start : start + 14])
    style[4] |= 1
    style[2:4] = bytes([0, 12 + 6])

    def with_precincts(size):
        body = bytes(style) + bytes([size] * 6)
        if place == "header":
            return data[:start] + body + data[start + 14 :]
        count = int.from_bytes(data[tile + 6 : tile + 10], "big") + len(body)
        begin = data[: tile + 6] + count.to_bytes(4, "big") + data[tile + 10 : tile + 12]
        return begin + body + data[tile + 12 :]

    assert image_size(with_precincts(0x44)) == Size(200, 200, 1)
    with pytest.raises(Unreadable, match="precincts that are too small"):
        image_size(with_precincts(0x22))


def scans_added(jpeg, count):
    """The same with its last scan several times more."""
    start = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[start:-2] * count + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused():
    jpeg = imagecodecs.jpeg8_encode(values())
    assert image_size(scans_added(jpeg, MAX_SCANS - 1)) == Size(40, 56, 1)
    with pytest.raises(Unreadable, match=f"a JPEG of {MAX_SCANS + 1} scans"):
        image_size(scans_added(jpeg, MAX_SCANS))
    comment = b"\xff\xfe\x02\x02" + b"\xff\xda" * 256  # markers within a comment are no scans
    assert image_size(jpeg[:2] + comment + jpeg[2:]) == Size(40, 56, 1)


def test_the_frames_of_a_file_count_against_max_bytes(tmp_path, make):
    path = make(tmp_path / "a", np.zeros((3, 40, 50), np.uint16))
    assert len(list(read_frames(read_header(path), max_bytes=12000))) == 3
    with pytest.raises(Unreadable, match=r"3 frames of 4000 bytes exceed max_bytes \(11999\)"):
        next(read_frames(read_header(path), max_bytes=11999))


def test_frames_beyond_the_number_in_the_header_count_too(tmp_path, compress):
    jpeg = imagecodecs.jpeg8_encode(values())  # without an offset table its end tells a frame's
    path = compress(tmp_path / "a", [jpeg] * 4, JPEGBaseline8Bit, has_bot=False, NumberOfFrames=2)
    assert len(list(read_frames(read_header(path)))) == 4
    with pytest.raises(Unreadable, match="3 frames of 2240 bytes exceed max_bytes"):
        list(read_frames(read_header(path), max_bytes=2 * 2240))


def deflated(path, make, pixels, more=0):
    make(path, pixels)
    dataset = pydicom.dcmread(path)
    if more:
        dataset.add_new(0x7FE11010, "OB", bytes(more))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("side", [40, 2100])
def test_a_deflated_file_inflates_to_no_more_than_max_bytes(side, tmp_path, make):
    pixels = values((side, side + 2))
    path = deflated(tmp_path / "a", make, pixels)
    assert (pixels.nbytes > HELD_BYTES) == (side == 2100)
    (frame,) = read_frames(read_header(path))
    assert np.array_equal(frame.image, pixels)
    with pytest.raises(Unreadable, match="inflates to more than max_bytes"):
        read_header(path, max_bytes=pixels.nbytes)


def test_a_deflated_file_that_was_cut_or_damaged_is_refused(tmp_path, make):
    path = deflated(tmp_path / "a", make, values((400, 500)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(Unreadable, match="truncated: its deflated data set"):
        read_header(path)
    path.write_bytes(whole[:-600] + b"\xff" * 600)
    with pytest.raises(Unreadable, match="its deflated data set"):
        read_header(path)


MEASURE = """
import sys
from pathlib import Path
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import read_header

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024

path, limit = Path(sys.argv[1]), int(sys.argv[2])
for frame in read_frames(read_header(Path(sys.argv[3]))):
    pass
before = peak()
try:
    print(sum(1 for frame in read_frames(read_header(path, limit), max_bytes=limit)), end=" ")
except Exception as error:
    print(type(error).__name__, end=" ")
print(peak() - before)
"""


def growth(path, warm, limit=4_000_000_000):
    """Frames read, or the error, and by how many MB the process grew at most."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, str(path), str(limit), str(warm)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    what, megabytes = run.stdout.split()
    return what, int(megabytes)


knows_its_peak = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system does not tell a process its peak"
)


@knows_its_peak
@pytest.mark.parametrize("kind", ["uncompressed", "lossless JPEG"])
def test_a_large_file_is_read_frame_by_frame(kind, tmp_path, make, compress):
    frame = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)
    warm = make(tmp_path / "warm", frame[None])
    if kind == "uncompressed":
        path = make(tmp_path / "a", np.stack([frame] * 300))
    else:
        encode, syntax = ENCODERS[kind]
        path = compress(tmp_path / "a", [encode(frame)] * 300, syntax, like=frame)
    assert path.stat().st_size > 70e6
    frames, megabytes = growth(path, warm)
    assert frames == "300"
    assert megabytes < 30


@knows_its_peak
def test_what_is_refused_takes_no_memory(tmp_path, make, compress):
    warm = make(tmp_path / "warm", values((512, 512)))
    huge = imagecodecs.jpeg2k_encode(np.zeros((4000, 4000), np.uint8), codecformat="j2k")
    path = compress(tmp_path / "a", [huge], JPEG2000Lossless)
    assert path.stat().st_size < 20_000
    what, megabytes = growth(path, warm)
    assert what == "Unreadable" and megabytes < 10
    path = deflated(tmp_path / "b", make, values(), more=200_000_000)
    assert path.stat().st_size < 1_000_000
    what, megabytes = growth(path, warm, limit=20_000_000)
    assert what == "Unreadable" and megabytes < 60


def test_max_bytes_is_an_option_of_the_layouts(tmp_path, make, shard_folder):
    (tmp_path / "in").mkdir()
    for count in (1, 3):
        frames = np.random.default_rng(count).integers(0, 255, (count, 40, 50), np.uint8)
        make(tmp_path / "in" / f"{count}.dcm", frames)
    options = {"layout": "dicom", "max_bytes": 4000, "max_bad": 0.5}
    document = shard_folder(tmp_path / "in", tmp_path / "set", **options)
    assert (document["records"], document["unreadable"]) == (1, 1)
    assert "exceed max_bytes (4000)" in (tmp_path / "set" / "quarantine.jsonl").read_text()
