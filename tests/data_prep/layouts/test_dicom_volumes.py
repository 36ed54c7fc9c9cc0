"""DICOM series as volumes of stage one: one window, the patient known, all else still files."""

import json
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation

from data_prep.common.errors import UserError
from data_prep.format.index import index_path, read_json
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset
from data_prep.records import NotAnImage, Unreadable, group_hash


def scan(count=40, seed=0):
    """(slices, rows, columns) of a bright ball in noise; its outermost slices are dark."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in (count, 36, 34)), indexing="ij")
    ball = sum(axis**2 for axis in axes) < 0.8
    noise = np.random.default_rng(seed).integers(0, 50, ball.shape)
    return (noise + 900 * ball + seed).astype(np.int16)


def records(output, split="train"):
    dataset = ShardDataset(output, split)
    return [dataset.record(index) for index in range(len(dataset))]


def test_slices_of_a_series_share_one_window(tmp_path, make_series, shard_folder):
    volume = scan()
    make_series(tmp_path / "in" / "a", volume)
    shard_folder(
        tmp_path / "in",
        tmp_path / "set",
        layout="dicom",
        series="volumes",
        planes=("axial",),
        min_content=0,
    )
    found = records(tmp_path / "set")
    limits = np.percentile(volume, (0.5, 99.5))
    shown = np.clip((volume - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255
    assert len(found) == 40
    for record in found:
        assert record.meta["window"] == pytest.approx(limits)
        assert record.meta["modality"] == "CT" and record.meta["plane"] == "axial"
        assert record.meta["spacing"] == [0.8, 0.6]
        nearest = min(abs(shown - record.image).mean(axis=(1, 2)))
        assert nearest <= 0.5  # it is one of the slices, as this window shows it


def test_dark_slices_are_left_out(tmp_path, make_series, shard_folder):
    volume = scan()
    make_series(tmp_path / "in", volume)
    bright = (volume > volume.mean()).mean(axis=(1, 2)) >= 0.1
    options = {"layout": "dicom", "series": "volumes", "planes": ("axial",), "min_content": 0.1}
    document = shard_folder(tmp_path / "in", tmp_path / "set", **options)
    assert 0 < document["records"] == bright.sum() < 40


def test_a_folder_gives_volumes_files_and_reasons(tmp_path, make_series, shard_folder):
    folder = tmp_path / "in"
    make_series(folder / "ct", scan())
    for path in list((folder / "ct").iterdir())[:3]:
        (folder / f"copy of {path.name}").write_bytes(path.read_bytes())
    gap = make_series(folder / "gap", scan(), series="1.2.8")
    gap[20].unlink()
    chest = {"Modality": "DX", "SOPClassUID": DigitalXRayImageStorageForPresentation}
    make_series(folder / "x-ray", scan(1), series="1.2.9", **chest)
    (folder / "broken.dcm").write_bytes(b"junk")
    options = {"layout": "dicom", "series": "volumes", "planes": ("axial", "coronal")}
    document = shard_folder(folder, tmp_path / "set", max_bad=1, **options)
    kinds = [(each.meta["modality"], each.meta.get("plane")) for each in records(tmp_path / "set")]
    assert set(kinds) == {("CT", "axial"), ("CT", "coronal"), ("DX", None)}
    assert kinds.count(("DX", None)) == 1
    assert 30 <= kinds.count(("CT", "axial")) <= 40
    lines = map(json.loads, (tmp_path / "set" / "quarantine.jsonl").read_text().splitlines())
    reasons = sorted(line["reason"] for line in lines)
    assert len(reasons) == document["unreadable"] == 3  # the gap is one in each plane
    assert all("2.50 to 5.00 mm apart" in reason for reason in reasons[:2])
    assert "not a DICOM file" in reasons[2]


def test_patients_are_known_before_pixels_are_read(tmp_path, make_series):
    make_series(tmp_path / "a", scan(3), PatientID="A")
    make_series(tmp_path / "b", scan(3), PatientID="B", series="1.2.8")
    make_series(tmp_path / "c", scan(1), PatientID="B", Modality="DX", series="1.2.9")
    make_series(tmp_path / "d", scan(3), PatientID="", series="1.2.10")
    layout = find_layout("dicom", "pretraining")(input=tmp_path, series="volumes")
    groups = {(each.path[0], each.part, each.group) for each in layout.references()}
    assert groups == {
        *(
            (folder, plane, group)
            for folder, group in (("a", "A"), ("b", "B"), ("d", "1.2.3"))
            for plane in ("axial", "coronal", "sagittal")
        ),
        ("c", "", "B"),
    }


def test_the_group_of_a_record_is_that_of_its_files(tmp_path, make_series, shard_folder):
    make_series(tmp_path / "in", scan(), PatientID="A")
    for series in ("files", "volumes"):
        output = tmp_path / series
        shard_folder(tmp_path / "in", output, layout="dicom", series=series, salt="s")
        assert {each.meta["group"] for each in records(output)} == {group_hash("A", "s")}


def test_bytes_do_not_depend_on_workers(tmp_path, make_series, shard_folder, folder_bytes):
    for number in range(3):
        make_series(tmp_path / "in" / str(number), scan(seed=number), series=f"1.2.{number}")
    for workers in (1, 3):
        output = tmp_path / str(workers)
        shard_folder(tmp_path / "in", output, layout="dicom", series="volumes", workers=workers)
    assert folder_bytes(tmp_path / "1") == folder_bytes(tmp_path / "3")


def test_text_burned_into_one_slice_is_in_all(tmp_path, make_series, shard_folder):
    make_series(
        tmp_path / "in",
        scan(),
        each=lambda index: {"BurnedInAnnotation": "YES" if index == 7 else "NO"},
    )
    layout = find_layout("dicom", "pretraining")
    kept = layout(input=tmp_path / "in", series="volumes", planes=("axial",))
    (reference,) = kept.references()
    assert all(sample.meta["burned_in"] for sample in kept.read(reference))
    refusing = replace(kept, burned_in="refuse")
    with pytest.raises(NotAnImage, match="burned"):
        next(iter(refusing.read(reference)))


def test_no_header_names_a_patient_in_the_set(tmp_path, make_series, shard_folder, folder_bytes):
    make_series(tmp_path / "in", scan(), SOPClassUID=CTImageStorage, BodyPartExamined="ROE JANE")
    shard_folder(tmp_path / "in", tmp_path / "set", layout="dicom", series="volumes")
    files = folder_bytes(tmp_path / "set").items()
    written = b"".join(text for name, text in files if not name.startswith("private"))
    for text in (b"Roe", b"ROE", b"4711", b"1.2.7"):
        assert text not in written


def test_bounds_hold_for_volumes(tmp_path, make_series):
    make_series(tmp_path, scan(4))
    for bound in ("max_pixels", "max_bytes"):
        layout = find_layout("dicom", "pretraining")(
            input=tmp_path, series="volumes", **{bound: 1000}
        )
        with pytest.raises(Unreadable, match=bound):
            list(layout.read(layout.references()[0]))


def test_options_of_volumes_are_refused_without_them(tmp_path):
    with pytest.raises(UserError, match="planes: is for volumes; add --series volumes"):
        find_layout("dicom", "pretraining")(input=tmp_path, planes=("axial",))


def test_files_stay_the_default(tmp_path, make_series, shard_folder):
    """A set made before volumes were an option: what identifies it has not changed."""
    make_series(tmp_path / "in", scan(2))
    layout = find_layout("dicom", "pretraining")(input=tmp_path / "in")
    assert [each.identity() for each in layout.references()] == [
        [name, "", name, None, (), "train", 1] for name in ("image 0", "image 1")
    ]
    shard_folder(tmp_path / "in", tmp_path / "set", layout="dicom")
    (tar,) = (tmp_path / "set").glob("*.tar")
    index = read_json(index_path(tar))
    for name in ("series", "planes", "min_content"):  # as before these were options
        del index["options"][name]
    index_path(tar).write_text(json.dumps(index))
    before = tar.stat().st_mtime_ns
    shard_folder(tmp_path / "in", tmp_path / "set", layout="dicom")
    assert tar.stat().st_mtime_ns == before


def test_images_without_a_uid_are_not_taken_for_copies(tmp_path, make_series):
    for number in (1, 2):
        for path in make_series(tmp_path / str(number), scan(3), AcquisitionNumber=number):
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = ""
            dataset.save_as(path)
    layout = find_layout("dicom", "pretraining")
    references = layout(input=tmp_path, series="volumes", planes=("axial",)).references()
    assert [len(each.masks) for each in references] == [3, 3]
