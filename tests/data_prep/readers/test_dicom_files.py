"""DICOM files: which are found, which are whole, and what of their headers is kept."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.fileset import FileSet

from data_prep.loader.dataset import ShardDataset
from data_prep.readers.dicom import read_frames
from data_prep.readers.dicom_header import is_dicom, read_header
from data_prep.records import NotAnImage, Unreadable

FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def frames(path, **options):
    return list(read_frames(read_header(path), **options))


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


def test_a_disc_with_a_dicomdir_gives_the_images_of_its_series(tmp_path, shard_folder, left_out):
    disc = FILES / "dicomdirtests"
    named = list(FileSet(disc / "DICOMDIR"))
    assert len(named) == 31
    document = shard_folder(disc, tmp_path / "set", layout="dicom", min_size=16)
    dataset = ShardDataset(tmp_path / "set")
    assert len(dataset) == len(named)
    assert document["unreadable"] == 0
    patients = {image.PatientID for image in named}
    assert len({dataset.meta(index)["group"] for index in range(31)}) == len(patients) == 2
    found = left_out(tmp_path / "set")
    assert found["DICOMDIR"] == found["TINY_ALPHA/DICOMDIR"] == ("skipped", "is a DICOMDIR")


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


def test_no_header_value_reaches_the_set(tmp_path, shard_folder, capfd, make, left_out):
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
    assert list(left_out(tmp_path / "set")) == ["RoeBroken"]  # names the file, for its owner only
    shared = [path for path in (tmp_path / "set").iterdir() if path.is_file()]
    assert {"quarantine.jsonl", "dataset.json"} < {path.name for path in shared}
    everything = b"".join(path.read_bytes() for path in shared)
    everything += "".join(capfd.readouterr()).encode()
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


@pytest.mark.parametrize("burned_in", ["keep", "refuse"])
def test_images_that_say_that_text_is_burned_in_are_counted_or_refused(
    burned_in, tmp_path, shard_folder, make
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


def test_a_value_that_is_damaged_makes_a_file_unreadable(tmp_path):
    data = (FILES / "CT_small.dcm").read_bytes()
    modality = data.index(b"\x08\0\x60\0CS")
    (tmp_path / "a.dcm").write_bytes(data[: modality + 5] + b"\xa1" + data[modality + 6 :])
    with pytest.raises(Unreadable, match="its header is damaged"):
        read_header(tmp_path / "a.dcm")
