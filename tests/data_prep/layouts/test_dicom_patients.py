"""Labelled DICOM series: whose they are, and that nobody is named."""

import numpy as np
import pydicom
import pytest

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.layouts import find_layout
from data_prep.loader.dataset import ShardDataset

WHOLE = ("--split", "{train: 1.0}")


def groups_of(output, split):
    dataset = ShardDataset(output, split)
    return {dataset.meta(index)["group"] for index in range(len(dataset))}


@pytest.mark.parametrize("name", ["GTV Jane", "node 20250131", "id-4711 lesion"])
def test_names_that_may_be_a_patients_are_not_targets(
    name, tmp_path, make_series, volume, write_rtstruct
):
    paths = make_series(tmp_path / "ct", volume())
    write_rtstruct(tmp_path / "rt", paths, [[square(2, 9, 2)]], [name])
    layout = find_layout("dicom", "segmentation")
    with pytest.raises(UserError, match=r"^labels: a name in rt may say whose it is") as error:
        layout(input=tmp_path).targets()
    assert name not in str(error.value)
    named = layout(input=tmp_path, labels={"lesion": ["*"]})
    assert named.targets() == {"lesion": [1]} and len(named.references()) == 1


def test_stage_one_leaves_out_the_patients_that_stage_two_tests_on(
    tmp_path, make_series, volume, boxes, write_seg
):
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


def test_no_patient_number_is_printed(tmp_path, make_series, capfd, volume, boxes, write_seg):
    """Numbers that look like those of one patient are warned of where they are names of files."""
    for number in range(5):
        header = {"series": f"1.2.{number}", "PatientID": f"TCGA-02-{number:04d}"}
        paths = make_series(tmp_path / "in" / str(number), volume(number), **header)
        write_seg(tmp_path / "in" / str(number) / "seg", paths, boxes())
    options = ["--layout=dicom", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'set'}"]
    main(["shard-seg", *options])
    printed = "".join(capfd.readouterr())
    assert "5 records" in printed and "warning" not in printed and "TCGA" not in printed


def test_a_study_anonymised_twice_gives_each_patient_its_own(
    tmp_path, make_series, read_layout, volume, boxes, write_seg
):
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


def test_labels_are_not_drawn_on_another_patients_images(
    tmp_path, make_series, volume, boxes, write_seg
):
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
