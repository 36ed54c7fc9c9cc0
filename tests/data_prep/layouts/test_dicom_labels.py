"""DICOM series with labels: volumes, targets, and what costs a record."""

import json
import pickle

import nibabel
import numpy as np
import pydicom
import pytest

from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.options import WriteOptions
from data_prep.records import Unreadable
from data_prep.shards import write_shards

WHOLE = ("--split", "{train: 1.0}")
SHAPE = (6, 20, 18)


def square(low, high, depth):
    return [(low, low, depth), (high, low, depth), (high, high, depth), (low, high, depth)]


def test_a_labelled_series_is_what_it_is_as_nifti(
    tmp_path, make_series, read_layout, volume, boxes, affine_of, write_seg
):
    paths = make_series(tmp_path / "in" / "ct", volume(), **OBLIQUE)
    masks = boxes() & [[[[True]]], [[[False]]]]
    write_seg(tmp_path / "in" / "seg", paths, masks[:1], names=("liver",))
    for folder, array in (("imagesTr", volume()), ("labelsTr", masks[0].astype(np.uint8))):
        (tmp_path / "nifti" / folder).mkdir(parents=True)
        image = nibabel.Nifti1Image(array.T, affine_of(paths))
        nibabel.save(image, tmp_path / "nifti" / folder / "case.nii.gz")
    (tmp_path / "nifti" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    )
    (dicom,) = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]
    (nifti,) = read_layout("shard-seg", "nnunet", tmp_path / "nifti", *WHOLE)["train"]
    assert np.array_equal(dicom.image, nifti.image) and np.array_equal(dicom.mask, nifti.mask)
    assert dicom.meta.keys() == nifti.meta.keys()
    for name in ("spacing", "affine"):
        assert np.allclose(dicom.meta[name], nifti.meta[name], atol=1e-4)
    for name in dicom.meta.keys() - {"spacing", "affine", "group"}:
        assert dicom.meta[name] == nifti.meta[name]


def test_files_of_labels_of_one_series_are_united(
    tmp_path, make_series, volume, boxes, in_order, affine_of, write_seg, write_rtstruct, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    masks = boxes()
    write_seg(tmp_path / "seg", paths, masks[:1], names=("GTV_1",))
    write_rtstruct(tmp_path / "rt", paths, [[square(0.5, 3.5, 0)]], ["gtv 1"])
    expected = masks[0].copy()
    expected[0, 1:4, 1:4] = True
    assert np.array_equal(read_one(tmp_path), in_order(expected, affine_of(paths)))


def test_labels_go_to_the_phase_whose_images_they_name(
    tmp_path, make_series, volume, boxes, write_seg
):
    place = [{"ImagePositionPatient": [-20, 10, 2.5 * (i // 2)]} for i in range(12)]
    paths = make_series(
        tmp_path / "ct",
        np.repeat(volume(), 2, axis=0),
        each=lambda index: place[index] | {"AcquisitionNumber": index % 2},
    )
    write_seg(tmp_path / "seg", paths[1::2], boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    (reference,) = layout.references()
    named = {path.relative_to(tmp_path).as_posix() for path in paths[1::2]}
    assert set(reference.masks) == named | {"", "seg"}


def test_series_without_labels_are_left_out_or_empty(
    tmp_path, make_series, volume, boxes, write_seg
):
    paths = make_series(tmp_path / "ct", volume())
    make_series(tmp_path / "other", volume(1), series="1.2.8", PatientID="B")
    write_seg(tmp_path / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")
    references = layout(input=tmp_path, missing="empty").references()
    assert [each.group for each in references] == ["ID-4711", "B"]
    empty = layout(input=tmp_path, missing="empty").source("dicom", references)
    (sample,) = empty.read(references[1])
    assert not sample.mask.any()
    assert [each.group for each in layout(input=tmp_path).references()] == ["ID-4711"]


def test_labels_without_their_images_are_counted(
    tmp_path, make_series, read_layout, volume, boxes, write_seg
):
    paths = make_series(tmp_path / "in" / "ct", volume())
    write_seg(tmp_path / "in" / "seg", paths, boxes())
    gone = make_series(tmp_path / "gone", volume(1), series="1.2.8")
    write_seg(tmp_path / "in" / "lost", gone, boxes())
    assert len(read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]) == 1
    (line,) = (tmp_path / "dicom-shards" / "quarantine.jsonl").read_text().splitlines()
    assert "no series of its patient that it labels is in the input" in json.loads(line)["reason"]


def test_targets_that_nothing_is_named_as_are_refused(
    tmp_path, make_series, volume, boxes, write_seg
):
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match="no series of CT, MR or PET with"):
        layout(input=tmp_path).references()
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    with pytest.raises(UserError, match="named as those of 'spleen'; of 2 names there are gtv 1"):
        layout(input=tmp_path, labels={"spleen": ["spleen"], "liver": ["liver"]}).references()


def test_more_than_eight_targets_may_not_overlap(
    tmp_path, make_series, volume, in_order, affine_of, write_rtstruct, read_one
):
    paths = make_series(tmp_path / "ct", volume())
    contours = [[square(2 * n - 0.5, 2 * n + 0.5, 2)] for n in range(9)]
    names = [f"node {letter}" for letter in "abcdefghi"]
    write_rtstruct(tmp_path / "rt", paths, contours, names)
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 2 * np.arange(9), 2 * np.arange(9)] = np.arange(1, 10)
    assert np.array_equal(read_one(tmp_path), in_order(expected, affine_of(paths)))
    write_rtstruct(tmp_path / "rt", paths, [contours[0], *contours[:8]], names)
    with pytest.raises(Unreadable, match="its targets overlap"):
        read_one(tmp_path)


def test_bytes_do_not_depend_on_workers(
    tmp_path, make_series, folder_bytes, volume, boxes, write_seg
):
    for number in range(4):
        folder = tmp_path / "in" / str(number)
        paths = make_series(folder, volume(number), series=f"1.2.{number}", PatientID=f"P{number}")
        write_seg(folder / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path / "in")
    source = layout.source("dicom", layout.references())
    for workers in (1, 3):
        output = tmp_path / str(workers)
        write_shards(
            source, WriteOptions(output=output, workers=workers, shard_records=1, salt="s")
        )
    one = folder_bytes(tmp_path / "1")
    assert folder_bytes(tmp_path / "3") == one and len(one) > 8


def test_bounds_hold_for_labelled_series(tmp_path, make_series, volume, boxes, write_seg, read_one):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bound in ("max_pixels", "max_bytes"):
        with pytest.raises(Unreadable, match=bound):
            read_one(tmp_path, **{bound: 300})


def test_workers_are_sent_names_and_not_headers(tmp_path, make_series, volume, boxes, write_seg):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    sent = pickle.dumps(layout.source("dicom", layout.references()).read)
    assert b"gtv 1" in sent and b"ID-4711" not in sent


def test_the_size_of_a_volume_is_known_from_a_header(
    tmp_path, make_series, volume, boxes, write_seg
):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bits in (8, 16):
        layout = find_layout("dicom", "segmentation")(input=tmp_path, bits=bits)
        (reference,) = layout.references()
        (sample,) = layout.read(reference)
        size = sample.image.nbytes + sample.mask.nbytes
        assert layout.stored_bytes(reference) == size


def test_damaged_labels_cost_their_volume(
    tmp_path, make_series, read_layout, volume, boxes, write_seg
):
    for number in range(2):
        folder = tmp_path / "in" / str(number)
        paths = make_series(folder, volume(number), series=f"1.2.{number}")
        path = write_seg(folder / "seg", paths, boxes())
    seg = pydicom.dcmread(path)
    del seg.SegmentsOverlap, seg.SegmentationType
    seg.save_as(path)
    records = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE, "--max_bad", "1")["train"]
    assert len(records) == 1
    (line,) = (tmp_path / "dicom-shards" / "quarantine.jsonl").read_text().splitlines()
    assert "its DICOM-SEG cannot be read" in json.loads(line)["reason"]
