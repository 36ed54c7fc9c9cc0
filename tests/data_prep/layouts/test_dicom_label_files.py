"""Which files of labels belong to which series, what is refused, and what is kept private."""

import json
import pickle

import numpy as np
import pydicom
import pytest

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.records import Unreadable
from data_prep.shards import write_shards
from helpers.dicom_labels import (
    WHOLE,
    boxes,
    read_one,
    square,
    volume,
    write_rtstruct,
    write_seg,
)


def test_series_without_labels_are_left_out_or_empty(tmp_path, make_series):
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


def test_labels_without_their_images_are_counted(tmp_path, make_series, read_layout):
    paths = make_series(tmp_path / "in" / "ct", volume())
    write_seg(tmp_path / "in" / "seg", paths, boxes())
    gone = make_series(tmp_path / "gone", volume(1), series="1.2.8")
    write_seg(tmp_path / "in" / "lost", gone, boxes())
    assert len(read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]) == 1
    (line,) = (tmp_path / "dicom-shards" / "quarantine.jsonl").read_text().splitlines()
    assert "no series of its patient that it labels is in the input" in json.loads(line)["reason"]


@pytest.mark.parametrize("name", ["GTV Jane", "node 20250131", "id-4711 lesion"])
def test_names_that_may_be_a_patients_are_not_targets(name, tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_rtstruct(tmp_path / "rt", paths, [[square(2, 9, 2)]], [name])
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match=r"^labels: a name in rt may say whose it is") as error:
        layout(input=tmp_path).targets()
    assert name not in str(error.value)
    named = layout(input=tmp_path, labels={"lesion": ["*"]})
    assert named.targets() == {"lesion": [1]} and len(named.references()) == 1


def test_targets_that_nothing_is_named_as_are_refused(tmp_path, make_series):
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match="no series of CT, MR or PET with"):
        layout(input=tmp_path).references()
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    with pytest.raises(UserError, match="named as those of 'spleen'; of 2 names there are gtv 1"):
        layout(input=tmp_path, labels={"spleen": ["spleen"], "liver": ["liver"]}).references()


def test_bytes_do_not_depend_on_workers(tmp_path, make_series, folder_bytes):
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


def test_stage_one_leaves_out_the_patients_that_stage_two_tests_on(tmp_path, make_series):
    folder = tmp_path / "in"
    for number in range(3):
        header = {"series": f"1.2.{number}", "PatientID": f"P{number}"}
        large = np.kron(volume(number), np.ones((1, 2, 2), np.uint16))  # 40 x 36 pixels
        paths = make_series(folder / str(number), large, **header)
        write_seg(folder / str(number) / "seg", paths, np.kron(boxes(), np.ones((1, 1, 2, 2))))
    common = ["--layout=dicom", f"--input={folder}", "--salt=s"]
    labelled, unlabelled = tmp_path / "two", tmp_path / "one"
    main(["shard-seg", *common, f"--output={labelled}", "--split={train: 0.7, test: 0.3}"])
    volumes = ["--series=volumes", "--planes=[axial]", f"--held_out={labelled}"]
    main(["shard", *common, f"--output={unlabelled}", *volumes])
    (tested,) = groups_of(labelled, "test")
    assert len(groups_of(unlabelled, "train")) == 2
    assert tested not in groups_of(unlabelled, "train")


def test_no_patient_number_is_printed(tmp_path, make_series, capfd):
    """Numbers that look like those of one patient are warned of where they are names of files."""
    for number in range(5):
        header = {"series": f"1.2.{number}", "PatientID": f"TCGA-02-{number:04d}"}
        paths = make_series(tmp_path / "in" / str(number), volume(number), **header)
        write_seg(tmp_path / "in" / str(number) / "seg", paths, boxes())
    options = ["--layout=dicom", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'set'}"]
    main(["shard-seg", *options])
    printed = "".join(capfd.readouterr())
    assert "5 records" in printed and "warning" not in printed and "TCGA" not in printed


def groups_of(output, split):
    dataset = ShardDataset(output, split)
    return {dataset.meta(index)["group"] for index in range(len(dataset))}


def test_larger_frames_are_refused_before_they_are_decoded(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    path = write_seg(tmp_path / "seg", paths, boxes())
    seg = pydicom.dcmread(path)
    seg.Rows = seg.Columns = 65535
    seg.save_as(path)
    with pytest.raises(Unreadable, match="larger frames"):
        read_one(tmp_path)


def test_bounds_hold_for_labelled_series(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bound in ("max_pixels", "max_bytes"):
        with pytest.raises(Unreadable, match=bound):
            read_one(tmp_path, **{bound: 300})


def test_workers_are_sent_names_and_not_headers(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    sent = pickle.dumps(layout.source("dicom", layout.references()).read)
    assert b"gtv 1" in sent and b"ID-4711" not in sent


def test_the_size_of_a_volume_is_known_from_a_header(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume())
    write_seg(tmp_path / "seg", paths, boxes())
    for bits in (8, 16):
        layout = find_layout("dicom", "segmentation")(input=tmp_path, bits=bits)
        (reference,) = layout.references()
        (sample,) = layout.read(reference)
        size = sample.image.nbytes + sample.mask.nbytes
        assert layout.stored_bytes(reference) == size


def test_damaged_labels_cost_their_volume(tmp_path, make_series, read_layout):
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


def test_a_study_anonymised_twice_gives_each_patient_its_own(tmp_path, make_series, read_layout):
    """Its UIDs are the same under both numbers."""
    for number, name in enumerate(("A", "B")):
        folder = tmp_path / "in" / name
        paths = make_series(folder, volume(number), PatientID=name)
        for index, path in enumerate(paths):  # as one series with one study
            dataset = pydicom.dcmread(path)
            dataset.SOPInstanceUID = f"1.2.5.{index}"
            dataset.save_as(path)
        seg = pydicom.dcmread(write_seg(folder / "seg", paths, np.roll(boxes(), number, axis=2)))
        seg.PatientID = name
        seg.save_as(folder / "seg")
    records = read_layout("shard-seg", "dicom", tmp_path / "in", *WHOLE)["train"]
    assert len(records) == 2 and len({record.meta["group"] for record in records}) == 2
    found = {(record.mask > 0).tobytes() for record in records}
    assert len(found) == 2
    assert all((record.mask > 0).sum() == boxes().any(0).sum() for record in records)


def test_labels_are_not_drawn_on_another_patients_images(tmp_path, make_series):
    paths = make_series(tmp_path / "ct", volume(), PatientID="A")
    write_seg(tmp_path / "own", paths, boxes())
    write_seg(tmp_path / "others", paths, boxes())
    seg = pydicom.dcmread(tmp_path / "others")
    seg.PatientID = "B"
    seg.save_as(tmp_path / "others")
    layout = find_layout("dicom", "segmentation")(input=tmp_path)
    drawn, left = layout.references()
    assert "own" in drawn.masks and "others" not in drawn.masks
    assert (left.path, left.masks, left.group) == ("others", (), "B")
