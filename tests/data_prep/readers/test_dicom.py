"""DICOM decoding against pydicom's own, on pydicom's test files and files made here."""

import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from data_prep.loader.dataset import ShardDataset
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import is_dicom, read_header
from data_prep.records import NotAnImage, Unreadable

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def frames(path, **options):
    return list(read_frames(read_header(path), **options))


def make(path, pixels, **header):
    """Write an uncompressed DICOM image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[-2:] if pixels.ndim < 4 else pixels.shape[1:3]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.tobytes()
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


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
def test_windows_are_pydicom_s(tmp_path, function, photometric):
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


def test_lookup_tables_are_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (65535 * np.linspace(0, 1, 256) ** 2).astype("<u2").tobytes()
    stored = np.arange(256, dtype=np.uint8).repeat(8).reshape(32, 64)
    (frame,) = frames(make(tmp_path / "a", stored, VOILUTSequence=[table]))
    assert np.abs(frame.image - 255 * (stored / 255) ** 2).max() <= 0.51
    (frame,) = frames(make(tmp_path / "a", stored, ModalityLUTSequence=[table]), window="full")
    assert np.abs(frame.image - 255 * (stored / 255) ** 2).max() <= 0.51


def test_twelve_bits_without_a_window_use_percentiles(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4096, (60, 60)).astype(np.uint16)
    (frame,) = frames(make(tmp_path / "a", stored, BitsStored=12, HighBit=11))
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1) * 255
    assert np.abs(frame.image - expected).max() <= 0.51


def test_eight_bit_grey_stays_as_it_is(tmp_path):
    stored = np.random.default_rng(0).integers(50, 90, (40, 40)).astype(np.uint8)
    (frame,) = frames(make(tmp_path / "a", stored))
    assert np.array_equal(frame.image, stored)


def test_padding_does_not_set_the_window(tmp_path):
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


def test_frames_of_an_enhanced_image_have_their_own_rescale_and_spacing(tmp_path):
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


def test_what_is_no_picture_is_told_from_what_is_damaged(tmp_path):
    for name, reason in {
        "rtplan.dcm": "no pixel data",
        "rtdose.dcm": "dose map",
        "liver_1frame.dcm": "segmentation",
        "dicomdirtests/DICOMDIR": "is a DICOMDIR",
    }.items():
        with pytest.raises(NotAnImage, match=reason):
            frames(FILES / name)
    for name, reason in {
        "MR_truncated.dcm": "truncated: some of its pixels are missing",
        "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded",
        "no_meta.dcm": "not a DICOM file",
    }.items():
        with pytest.raises(Unreadable, match=reason):
            frames(FILES / name)
    with pytest.raises(Unreadable, match="64 x 64 pixels exceed"):
        frames(FILES / "MR_small.dcm", max_pixels=4095)
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(Unreadable, match="not a DICOM file"):
        frames(tmp_path / "a.dcm")


def test_files_are_found_by_their_magic(tmp_path):
    assert is_dicom(FILES / "dicomdirtests" / "98892003" / "MR1" / "4919")
    assert not is_dicom(FILES / "README.txt")
    (tmp_path / "empty").touch()
    assert not is_dicom(tmp_path / "empty")


def test_a_disc_with_a_dicomdir_gives_the_images_of_its_series(tmp_path, shard_folder):
    disc = FILES / "dicomdirtests"
    named = list(FileSet(disc / "DICOMDIR"))
    assert len(named) == 31
    document = shard_folder(disc, tmp_path / "set", layout="dicom", min_size=16)
    dataset = ShardDataset(tmp_path / "set")
    assert len(dataset) == len(named)
    assert document["unreadable"] == 0
    patients = {image.PatientID for image in named}
    assert len({dataset.meta(index)["group"] for index in range(31)}) == len(patients) == 2
    lines = (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines()
    reasons = {line["path"]: line["reason"] for line in map(json.loads, lines)}
    assert reasons["DICOMDIR"] == reasons["TINY_ALPHA/DICOMDIR"] == "is a DICOMDIR"


PERSONAL = {
    "PatientName": "Roe^Jane",
    "PatientID": "ID-4711-XYZ",
    "PatientBirthDate": "19700102",
    "StudyDate": "20011203",
    "InstitutionName": "Saint Somewhere",
    "ReferringPhysicianName": "Doe^John",
    "AccessionNumber": "ACC-991",
    "StudyDescription": "Follow-up of Jane Roe",
    "BodyPartExamined": "ROE JANE",
    "StationName": "STATION-7",
    "DeviceSerialNumber": "SN-553311",
    "StudyInstanceUID": "1.2.826.0.1.4711",
}


def test_no_header_value_reaches_the_set(tmp_path, shard_folder, capfd):
    folder = tmp_path / "Roe Jane"
    folder.mkdir()
    stored = np.random.default_rng(0).integers(0, 1000, (2, 40, 40)).astype(np.uint16)
    for number in range(3):
        make(folder / f"Roe{number}", stored + number, **PERSONAL)
    broken = (folder / "Roe0").read_bytes()[:-3000]
    (folder / "RoeBroken").write_bytes(broken)
    shard_folder(folder, tmp_path / "set", layout="dicom", max_bad=0.5)
    dataset = ShardDataset(tmp_path / "set")
    assert len(dataset) == 6
    assert {dataset.meta(i)["group"] for i in range(6)} == {dataset.meta(0)["group"]}
    assert "body_part" not in dataset.meta(0)
    written = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    lines = [json.loads(line) for line in written.pop("quarantine.jsonl").splitlines()]
    assert [line["path"] for line in lines] == ["RoeBroken"]  # names the file, for its owner only
    everything = b"".join(written.values()) + "".join(capfd.readouterr()).encode()
    everything += json.dumps([line["reason"] for line in lines]).encode()
    for value in [*PERSONAL.values(), "Roe", "Jane"]:
        assert value.encode() not in everything


def test_a_decoder_that_panics_costs_one_file():
    """pylibjpeg's decoder of RLE is Rust: its panics are not `Exception`s."""
    dataset = pydicom.dcmread(FILES / "MR_small_RLE.dcm")
    whole = bytes(dataset.PixelData)
    start = whole.rfind(b"\xfe\xff\x00\xe0") + 8
    refused = 0
    for seed in range(60):
        damaged = bytearray(whole)
        generator = np.random.default_rng(seed)
        for position in generator.integers(start + 64, len(whole) - 8, 20):
            damaged[position] = generator.integers(256)
        dataset.PixelData = bytes(damaged)
        try:
            assert len(list(read_frames(dataset))) == 1
        except Unreadable as error:
            assert "cannot be decoded" in str(error)
            refused += 1
    assert refused > 0


def raw_elements(path):
    dataset = pydicom.dcmread(path)
    items = (dataset.get_item(tag) for tag in list(dataset.keys()))
    return [item for item in items if isinstance(item, RawDataElement)]


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "ExplVR_BigEnd.dcm"]
)
def test_a_file_that_was_cut_is_unreadable_wherever_it_was_cut(name, tmp_path):
    data = (FILES / name).read_bytes()
    path = tmp_path / "cut.dcm"
    dataset = pydicom.dcmread(FILES / name)
    pixels = data.rfind(dataset.PixelData)
    assert pixels > 0
    reasons = set()
    ends = {item.value_tell + item.length for item in raw_elements(FILES / name)}
    sizes = np.linspace(1, pixels + len(dataset.PixelData) // 2, 40).astype(int)
    for size in {*sizes.tolist()} - ends:  # at such an end it is a header without pixels
        path.write_bytes(data[:size])
        with pytest.raises(Unreadable) as error:
            list(read_frames(read_header(path)))
        reasons.add(str(error.value))
    assert any(reason.startswith("truncated: ") for reason in reasons)


def test_a_file_without_a_preamble_is_found_and_read(tmp_path):
    whole = FILES / "CT_small.dcm"
    bare = tmp_path / "IM0001"
    bare.write_bytes(whole.read_bytes()[132:])
    dataset = pydicom.dcmread(whole)
    without_meta = tmp_path / "IM0002"
    del dataset.file_meta
    dataset.preamble = None
    dataset.save_as(without_meta, implicit_vr=True, little_endian=True, enforce_file_format=False)
    for path in (bare, without_meta):
        assert is_dicom(path)
        assert np.array_equal(frames(path)[0].image, frames(whole)[0].image)
    (tmp_path / "notes").write_text("Jane Roe")
    assert not is_dicom(tmp_path / "notes")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    assert not is_dicom(tmp_path / "pipe.dcm")


@pytest.mark.parametrize(("width", "center"), [(0.5, 0.5), (1, 0.75)])
def test_a_narrow_window_on_fractions_is_a_window(tmp_path, width, center):
    """As of PET, whose values are rescaled: half of the window is below its centre."""
    stored = np.tile(np.arange(200, dtype=np.uint16), (40, 1))
    header = {"RescaleSlope": 0.01, "RescaleIntercept": 0}
    window = {"WindowCenter": center, "WindowWidth": width}
    (frame,) = frames(make(tmp_path / "a", stored, **header, **window))
    low, high = center - width / 2, center + width / 2
    expected = np.clip((stored * 0.01 - low) / (high - low), 0, 1) * 255
    assert np.abs(frame.image - expected).max() <= 0.51
    assert len(np.unique(frame.image)) > 40


def test_a_width_of_one_on_whole_numbers_is_a_threshold(tmp_path):
    stored = np.tile(np.arange(100, dtype=np.uint16), (40, 1))
    (frame,) = frames(make(tmp_path / "a", stored, WindowCenter=50, WindowWidth=1))
    assert np.array_equal(frame.image, np.where(stored > 49.5, 255, 0))


@pytest.mark.parametrize("burned_in", ["keep", "refuse"])
def test_images_that_say_that_text_is_burned_in_are_counted_or_refused(
    burned_in, tmp_path, shard_folder
):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    (tmp_path / "files").mkdir()
    for number, answer in enumerate(("YES", "NO", "YES", None)):
        header = {} if answer is None else {"BurnedInAnnotation": answer}
        make(tmp_path / "files" / f"{number}.dcm", pixels + number, **header)
    options = {"layout": "dicom", "burned_in": burned_in}
    document = shard_folder(tmp_path / "files", tmp_path / "set", **options)
    kept = burned_in == "keep"
    assert (document["records"], document["skipped"]) == ((4, 0) if kept else (2, 2))
    assert document.get("burned_in") == (2 if kept else None)
    reasons = (tmp_path / "set" / "quarantine.jsonl").read_text()
    assert reasons.count("text is burned into its pixels") == (0 if kept else 2)


def test_a_spacing_of_zero_is_unknown(tmp_path):
    pixels = np.zeros((40, 40), np.uint8)
    for spacing, expected in (([0.5, 0.25], [0.5, 0.25]), ([0, 0], None), ([0.5, 0], None)):
        (frame,) = frames(make(tmp_path / "a", pixels, PixelSpacing=spacing))
        assert frame.meta["spacing"] == expected


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_palette_gives_the_same_colours_in_either_byte_order(syntax, bits, tmp_path):
    little = syntax == ExplicitVRLittleEndian
    tables = [(np.arange(256) * (k + 1) // 3).astype(np.uint8) for k in range(3)]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 32, 32, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "PALETTE COLOR", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    indices = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    dataset.PixelData = indices.tobytes()
    dataset["PixelData"].VR = "OB"
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        values = table.astype(np.uint16) * 256 + 13 if bits == 16 else table.view("<u2")
        stored = values.astype("<u2" if little else ">u2").tobytes()
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", stored)
    path = tmp_path / "palette.dcm"
    dataset.save_as(path, implicit_vr=False, little_endian=little, enforce_file_format=True)
    (frame,) = frames(path)
    expected = np.stack([table[indices] for table in tables], axis=-1).astype(int)
    assert np.abs(frame.image - expected).max() <= (1 if bits == 16 else 0)
