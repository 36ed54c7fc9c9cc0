"""DICOM decoding against pydicom's own, on pydicom's test files and files made here."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import (
    apply_color_lut,
    apply_modality_lut,
    apply_voi_lut,
    convert_color_space,
)
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)

from data_prep.readers import dicom_pixels, intensity
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import read_header
from data_prep.records import Unreadable

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def frames(path, **options):
    return list(read_frames(read_header(path), **options))


GREY = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "693_J2KI.dcm",
    "JPGExtended.dcm",
]


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize("bits", [8, 16])
def test_full_range_is_pydicom_s_rescaled_pixels(name, bits):
    dataset = pydicom.dcmread(FILES / name)
    values = apply_modality_lut(dataset.pixel_array, dataset).astype(np.float64)
    (frame,) = frames(FILES / name, bits=bits, window="full")
    top = (1 << bits) - 1
    expected = (values - values.min()) / np.ptp(values) * top
    assert frame.image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.abs(frame.image - expected).max() <= 0.51
    assert frame.meta["window"] == [values.min(), values.max()]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_are_pydicom_s(tmp_path, function, photometric, make):
    stored = np.random.default_rng(0).integers(-2000, 2000, (40, 50)).astype(np.int16)
    path = make(
        tmp_path / "a",
        stored,
        PhotometricInterpretation=photometric,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=[40, 300],
        WindowWidth=[400, 1500],
        VOILUTFunction=function,
    )
    dataset = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
    low, high = -(2**15) * 2 - 100, (2**15 - 1) * 2 - 100  # the range pydicom maps the window to
    expected = (shown - low) / (high - low) * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    (frame,) = frames(path)
    assert np.abs(frame.image - expected).max() <= 0.51
    assert 0 < (frame.image == 0).mean() < 1  # the window cuts


def test_lookup_tables_are_applied(tmp_path, make):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (65535 * np.linspace(0, 1, 256) ** 2).astype("<u2").tobytes()
    stored = np.arange(256, dtype=np.uint8).repeat(8).reshape(32, 64)
    (frame,) = frames(make(tmp_path / "a", stored, VOILUTSequence=[table]))
    assert np.abs(frame.image - 255 * (stored / 255) ** 2).max() <= 0.51
    (frame,) = frames(make(tmp_path / "a", stored, ModalityLUTSequence=[table]), window="full")
    assert np.abs(frame.image - 255 * (stored / 255) ** 2).max() <= 0.51


def test_twelve_bits_without_a_window_use_percentiles(tmp_path, make):
    stored = np.random.default_rng(0).integers(0, 4096, (60, 60)).astype(np.uint16)
    (frame,) = frames(make(tmp_path / "a", stored, BitsStored=12, HighBit=11))
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1) * 255
    assert np.abs(frame.image - expected).max() <= 0.51


def test_eight_bit_grey_stays_as_it_is(tmp_path, make):
    stored = np.random.default_rng(0).integers(50, 90, (40, 40)).astype(np.uint8)
    (frame,) = frames(make(tmp_path / "a", stored))
    assert np.array_equal(frame.image, stored)


def test_padding_does_not_set_the_window(tmp_path, make):
    stored = np.random.default_rng(0).integers(0, 1000, (40, 40)).astype(np.int16)
    stored[:10] = -2000
    path = make(tmp_path / "a", stored, PixelPaddingValue=-2000)
    (frame,) = frames(path)
    assert frame.meta["window"] == pytest.approx(np.percentile(stored[10:], (0.5, 99.5)))
    assert not frame.image[:10].any() and frame.image[10:].mean() > 100


@pytest.mark.parametrize(
    "name",
    ["SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "examples_ybr_color.dcm", "examples_rgb_color.dcm"],
)
def test_colour_is_pydicom_s_rgb(name):
    expected = pydicom.dcmread(FILES / name).pixel_array
    expected = expected.reshape(-1, *expected.shape[-3:])
    shown = frames(FILES / name)
    assert len(shown) == len(expected)
    for frame, pixels in zip(shown, expected, strict=True):
        assert frame.image.dtype == np.uint8 and np.array_equal(frame.image, pixels)


def test_sixteen_bit_rgb_becomes_eight_bit():
    wide = pydicom.dcmread(FILES / "SC_rgb_rle_16bit_2frame.dcm").pixel_array
    shown = np.stack([f.image for f in frames(FILES / "SC_rgb_rle_16bit_2frame.dcm")])
    assert shown.dtype == np.uint8 and np.abs(shown - wide / 257).max() <= 0.51


def test_palette_is_pydicom_s_rgb():
    dataset = pydicom.dcmread(FILES / "examples_palette.dcm")
    expected = apply_color_lut(dataset.pixel_array, dataset)
    (frame,) = frames(FILES / "examples_palette.dcm")
    assert np.abs(frame.image - expected / np.iinfo(expected.dtype).max * 255).max() <= 0.51


def test_frames_of_an_enhanced_image_have_their_own_rescale_and_spacing(tmp_path, make):
    stored = np.random.default_rng(0).integers(0, 1000, (2, 40, 50)).astype(np.uint16)
    groups = []
    for slope in (1, 3):
        group, rescale = Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, 5
        group.PixelValueTransformationSequence = [rescale]
        groups.append(group)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing = [0.5, 0.25]
    shared.PixelMeasuresSequence = [measures]
    path = make(
        tmp_path / "a",
        stored,
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )
    shown = frames(path, window=(0.0, 3005.0))
    for frame, pixels, slope in zip(shown, stored, (1, 3), strict=True):
        assert np.abs(frame.image - (pixels * slope + 5.0) / 3005 * 255).max() <= 0.51
        assert frame.meta["spacing"] == [0.5, 0.25]


@pytest.mark.parametrize(("width", "center"), [(0.5, 0.5), (1, 0.75)])
def test_a_narrow_window_on_fractions_is_a_window(tmp_path, width, center, make):
    """As of PET, whose values are rescaled: half of the window is below its centre."""
    stored = np.tile(np.arange(200, dtype=np.uint16), (40, 1))
    header = {"RescaleSlope": 0.01, "RescaleIntercept": 0}
    window = {"WindowCenter": center, "WindowWidth": width}
    (frame,) = frames(make(tmp_path / "a", stored, **header, **window))
    low, high = center - width / 2, center + width / 2
    expected = np.clip((stored * 0.01 - low) / (high - low), 0, 1) * 255
    assert np.abs(frame.image - expected).max() <= 0.51
    assert len(np.unique(frame.image)) > 40


def test_a_width_of_one_on_whole_numbers_is_a_threshold(tmp_path, make):
    stored = np.tile(np.arange(100, dtype=np.uint16), (40, 1))
    (frame,) = frames(make(tmp_path / "a", stored, WindowCenter=50, WindowWidth=1))
    assert np.array_equal(frame.image, np.where(stored > 49.5, 255, 0))


def test_a_spacing_of_zero_is_unknown(tmp_path, make):
    pixels = np.zeros((40, 40), np.uint8)
    for spacing, expected in (([0.5, 0.25], [0.5, 0.25]), ([0, 0], None), ([0.5, 0], None)):
        (frame,) = frames(make(tmp_path / "a", pixels, PixelSpacing=spacing))
        assert frame.meta["spacing"] == expected


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_palette_gives_the_same_colours_in_either_byte_order(syntax, bits, tmp_path, make):
    order = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    tables = [(np.arange(256) * (k + 1) // 3).astype(np.uint8) for k in range(3)]
    header = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        values = table.astype(np.uint16) * 256 + 13 if bits == 16 else table.view("<u2")
        header[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        header[f"{name}PaletteColorLookupTableData"] = values.astype(order).tobytes()
    indices = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    (frame,) = frames(make(tmp_path / "a", indices, syntax, **header))
    expected = np.stack([table[indices] for table in tables], axis=-1).astype(int)
    assert np.abs(frame.image - expected).max() <= (1 if bits == 16 else 0)


def test_every_frame_of_subsampled_colour_is_read(tmp_path, make):
    stored = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 2), np.uint8)
    header = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "YBR_FULL_422",
        "PlanarConfiguration": 0,
        "NumberOfFrames": 3,
    }
    path = make(tmp_path / "a", stored, **header)
    expected = pydicom.dcmread(path).pixel_array
    shown = frames(path)
    assert len(shown) == 3
    assert all(np.array_equal(f.image, pixels) for f, pixels in zip(shown, expected, strict=True))


def lut(bits, signed):
    table = Dataset()
    table.LUTDescriptor = [256, -40 if signed else 100, bits]
    table.LUTData = np.random.default_rng(bits).integers(0, 1 << bits, 256).astype("<u2").tobytes()
    return [table]


SHOWN = {
    "stored": {},
    "slope": {"RescaleSlope": 0.37, "RescaleIntercept": -1024},
    "negative slope": {"RescaleSlope": -2, "RescaleIntercept": 5},
    "whole": {"RescaleSlope": 1, "RescaleIntercept": 0},
    "infinite": {"RescaleSlope": "1e400", "RescaleIntercept": 0},
    "padding": {"PixelPaddingValue": 7, "PixelPaddingRangeLimit": 30},
    "inverse": {"PhotometricInterpretation": "MONOCHROME1"},
    "narrow window": {"WindowCenter": 100.25, "WindowWidth": 1},
    "window of fractions": {
        "WindowCenter": 100.25,
        "WindowWidth": 1,
        "RescaleSlope": 0.5,
        "RescaleIntercept": 0,
    },
    "sigmoid": {"WindowCenter": 100, "WindowWidth": 80, "VOILUTFunction": "SIGMOID"},
    "window": {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 3, "RescaleIntercept": 1},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("kind", [*SHOWN, "modality table", "table of values"])
def test_a_table_of_values_shows_what_each_pixel_would(kind, dtype, tmp_path, make, monkeypatch):
    """Bit for bit, for windows of the file and others, at 8 and 16 bits."""
    rng = np.random.default_rng(len(kind))
    whole, signed = np.iinfo(dtype), np.dtype(dtype).kind == "i"
    header = SHOWN.get(kind, {})
    if kind == "modality table":
        header = {"ModalityLUTSequence": lut(16, signed)}
    if kind == "table of values":
        header = {"VOILUTSequence": lut(8, signed)}
    pixels = np.clip(rng.normal(60, 90, (200, 190)), whole.min, whole.max).astype(dtype) // 2 * 2
    path = make(tmp_path / "a", pixels, **header)
    taken = []
    monkeypatch.setattr(
        "data_prep.readers.dicom.look_up", lambda *a: taken.append(1) or intensity.look_up(*a)
    )
    for bits in (8, 16):
        for window in ("auto", "percentile", "full", (-20.5, 130.0)):
            results = []
            for few in (0, 1 << 30):
                monkeypatch.setattr(intensity, "FEW_PIXELS", few)
                try:
                    (frame,) = frames(path, bits=bits, window=window)
                    results.append((frame.image.tobytes(), frame.image.dtype, frame.meta))
                except Unreadable as error:
                    results.append(str(error))
            assert results[0] == results[1], (bits, window)
    assert taken or kind == "infinite"


def test_colours_are_converted_some_rows_at_a_time(monkeypatch):
    name = "examples_ybr_color.dcm"
    expected = pydicom.dcmread(FILES / name).pixel_array  # (frames, H, W, 3)
    bands = []

    def convert(band, *spaces):
        bands.append(len(band))
        return convert_color_space(band, *spaces)

    monkeypatch.setattr(dicom_pixels, "convert_color_space", convert)
    monkeypatch.setattr(dicom_pixels, "BAND_PIXELS", 7 * expected.shape[2])
    shown = frames(FILES / name)
    assert all(np.array_equal(f.image, pixels) for f, pixels in zip(shown, expected, strict=True))
    assert sum(bands) == len(expected) * expected.shape[1] and max(bands) == 7
