"""Groups: no split cuts a patient or a lesion in two, whatever the layout."""

import csv
import json
import re

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.format.index import read_json
from data_prep.loader.dataset import ShardDataset
from data_prep.records import Reference
from data_prep.shards.groups import alike_across_splits, regroup


def pictures(folder, names):
    """Images with masks, each of another size, so that a record can be known by it."""
    for number, name in enumerate(names):
        pixels = np.full((40 + number, 40), number, np.uint8)
        mask = np.zeros_like(pixels)
        mask[5:9, 5:9] = 255
        for kind, array, suffix in (("images", pixels, ""), ("masks", mask, "_segmentation")):
            path = folder / kind / f"{name}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def shard(folder, output, *options):
    pairs = ["--image=images/*.png", "--mask=masks/*_segmentation.png", "--threshold=128"]
    main(
        ["shard-seg", "--layout=pairs", f"--input={folder}", f"--output={output}", *pairs, *options]
    )


def heights_of_groups(output):
    """Heights of the images of each group, and the splits that it is in."""
    groups = {}
    for split in read_json(output / "dataset.json")["splits"]:
        dataset = ShardDataset(output, split)
        for index in range(len(dataset)):
            meta = dataset.meta(index)
            heights, splits = groups.setdefault(meta["group"], ([], set()))
            heights.append(meta["size"][0] - 40)
            splits.add(split)
    return groups


NAMES = [f"p{patient}_{view}" for patient in range(6) for view in ("left", "right", "left2")]
PATIENTS = [[3 * patient, 3 * patient + 1, 3 * patient + 2] for patient in range(6)]


@pytest.mark.parametrize("form", ["pattern", "whole match", "table"])
def test_patients_are_never_cut(form, tmp_path, capsys):
    pictures(tmp_path / "in", NAMES)
    if form == "table":
        with (tmp_path / "groups.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["group", "file"])
            for number, name in enumerate(NAMES):  # three ways to name a file
                known = (name, f"{name}.png", f"images/{name}.png")[number % 3]
                writer.writerow([f"patient {number // 3}", known])
    option = {"pattern": "(p[0-9]+)_", "whole match": "^p[0-9]+", "table": tmp_path / "groups.csv"}
    shard(tmp_path / "in", tmp_path / "set", f"--group={option[form]}")
    assert "warning" not in capsys.readouterr().err
    groups = heights_of_groups(tmp_path / "set")
    assert sorted(sorted(heights) for heights, _ in groups.values()) == PATIENTS
    assert all(len(splits) == 1 for _, splits in groups.values())
    assert {split for _, splits in groups.values() for split in splits} == {"train", "test"}
    stored = read_json(tmp_path / "set" / "dataset.json")["source"]["group"]
    assert stored == ("CSV" if form == "table" else option[form])


def test_names_that_look_like_one_patient_are_warned_of(tmp_path, capsys):
    pictures(tmp_path / "in", NAMES)
    shard(tmp_path / "in", tmp_path / "set", "--split={train: 0.5, test: 0.5}")
    warning = next(line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert "names are in several splits, as p" in warning
    assert "say so with --group" in warning and "(test)" in warning and "(train)" in warning


def test_acdc_frames_in_an_nnunet_folder(tmp_path, capsys):
    """The case is a frame there, and a patient has two."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for patient in range(1, 6):
        for frame in (1, 12):
            case = f"patient{patient:03d}_frame{frame:02d}"
            volume = np.zeros((20, 20, 4), np.uint8)
            volume[5:9, 5:9, 1:3] = 1
            for path in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"):
                nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "in" / path)
    document = {"labels": {"background": 0, "heart": 1}, "channel_names": {"0": "cineMRI"}}
    (tmp_path / "in" / "dataset.json").write_text(json.dumps(document))
    options = ["shard-seg", "--layout=nnunet", f"--input={tmp_path / 'in'}"]
    main([*options, f"--output={tmp_path / 'cut'}", "--split={train: 0.5, test: 0.5}"])
    assert "patient00" in capsys.readouterr().err
    main([*options, f"--output={tmp_path / 'set'}", "--group=patient[0-9]+"])
    assert "warning" not in capsys.readouterr().err
    splits = read_json(tmp_path / "set" / "dataset.json")["splits"]
    assert {name: (s["groups"], s["records"]) for name, s in splits.items()} == {
        "train": (4, 8),
        "test": (1, 2),
    }


@pytest.mark.parametrize("layout", ["pairs", "isic_task1"])
def test_lesions_of_ham10000_are_known_from_its_table(layout, tmp_path):
    names = [f"ISIC_{number:07d}" for number in range(12)]
    pictures(tmp_path / "in", names)
    for name in names:  # isic_task1 takes photographs
        image = Image.open(tmp_path / "in" / "images" / f"{name}.png").convert("RGB")
        image.save(tmp_path / "in" / "images" / f"{name}.jpg")
        if layout == "isic_task1":
            (tmp_path / "in" / "images" / f"{name}.png").unlink()
    lines = [f"HAM_{number // 2},{name},nv" for number, name in enumerate(names)]
    table = "lesion_id,image_id,dx\n" + "\n".join(lines)
    (tmp_path / "in" / "HAM10000_metadata.csv").write_text(table)
    if layout == "pairs":
        shard(tmp_path / "in", tmp_path / "set")
    else:
        options = ["shard-seg", "--layout=isic_task1", f"--input={tmp_path / 'in'}"]
        split = "--split={train: 0.8, test: 0.2}"
        main([*options, f"--output={tmp_path / 'set'}", "--threshold=128", split])
    groups = heights_of_groups(tmp_path / "set")
    lesions = [[2 * lesion, 2 * lesion + 1] for lesion in range(6)]
    assert sorted(sorted(heights) for heights, _ in groups.values()) == lesions
    assert all(len(splits) == 1 for _, splits in groups.values())


def test_a_group_that_does_not_say_is_refused(tmp_path):
    references = [Reference("images/a_1.png"), Reference("images/b.png")]
    for group, message in (
        ("([a-z])_", "does not say to whom images/b.png belongs"),
        ("(", "is not a regular expression"),
        (str(tmp_path / "absent.csv"), "cannot be read as CSV"),
    ):
        with pytest.raises(UserError, match=message):
            regroup(references, group)
    (tmp_path / "table.csv").write_text("file,patient\na_1,x\n")
    with pytest.raises(UserError, match="has no column 'group'"):
        regroup(references, str(tmp_path / "table.csv"))


def test_only_names_with_a_number_of_their_own_look_alike():
    def cases(*names):
        return [
            Reference(name, group=name, split=("train", "test")[number % 2])
            for number, name in enumerate(names)
        ]

    assert alike_across_splits(cases("p1_left", "p1_right")) == [
        "p1_right (test) and p1_left (train)"
    ]
    assert alike_across_splits(cases("hippocampus_001", "hippocampus_002")) == []
    assert alike_across_splits(cases("ISIC_0000001", "ISIC_0000002")) == []
    assert alike_across_splits(cases("p1_left", "p2_left")) == []


def scans(folder, patients):
    """DICOM files of any names, one for each patient number given."""
    for index, patient in enumerate(patients):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.PatientID = f"ID {patient}"
        dataset.SOPInstanceUID = f"1.2.3.{index}"
        folder.mkdir(exist_ok=True)
        dataset.save_as(folder / f"scan{index}.dcm")


def cases_of(folder, patients):
    """Labelled images named after cases, and the table of whose they are."""
    pictures(folder, [f"case{index}" for index in range(len(patients))])
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group"])
        writer.writerows([f"case{index}", f"ID {p}"] for index, p in enumerate(patients))


def test_held_out_patients_are_known_by_dicom_headers(tmp_path, left_out):
    """The set with masks is named by case; its table says which patient a case is."""
    scans(tmp_path / "scans", [0, 1, 2, 3, 1, 4])
    cases_of(tmp_path / "in", [0, 1, 2, 3])
    table = f"--group={tmp_path / 'in' / 'patients.csv'}"
    shard(tmp_path / "in", tmp_path / "seg", table, "--split={train: 0.5, test: 0.5}")
    names = {}
    for path in (tmp_path / "seg" / "private").glob("test-*.csv"):
        with path.open(newline="") as file:
            names |= {row["patient"]: row["file"] for row in csv.DictReader(file)}
    options = ["--layout=dicom", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'set'}"]
    main(["shard", *options, f"--held_out={tmp_path / 'seg'}", "--shard_records=2"])
    expected = {
        f"scan{index}.dcm"
        for index, patient in enumerate([0, 1, 2, 3, 1, 4])
        if f"ID {patient}" in names
    }
    assert len(expected) in (2, 3)
    assert left_out(tmp_path / "set") == {
        name: ("skipped", "shows a held-out patient") for name in expected
    }
    assert len(ShardDataset(tmp_path / "set")) == 6 - len(expected)


def test_a_set_that_leaves_no_held_out_patient_out_is_refused(tmp_path, capsys):
    scans(tmp_path / "scans", [7, 8])
    cases_of(tmp_path / "in", [0, 1, 2, 3])
    shard(tmp_path / "in", tmp_path / "seg")
    options = ["--layout=dicom", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'set'}"]
    with pytest.raises(SystemExit):
        main(["shard", *options, f"--held_out={tmp_path / 'seg'}"])
    assert "no patient of" in (error := capsys.readouterr().err) and "--group" in error
    assert not (tmp_path / "set" / "dataset.json").exists()


def test_a_given_group_holds_whatever_a_header_says(tmp_path):
    scans(tmp_path / "scans", [0, 0, 1, 1])
    options = ["--layout=dicom", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'set'}"]
    main(["shard", *options, "--group=scan([0-9])"])
    dataset = ShardDataset(tmp_path / "set")
    assert len({dataset.meta(index)["group"] for index in range(4)}) == 4


def test_images_in_a_folder_are_grouped_and_held_out(tmp_path):
    cases_of(tmp_path / "in", [0, 1, 2, 3])
    table = f"--group={tmp_path / 'in' / 'patients.csv'}"
    shard(tmp_path / "in", tmp_path / "seg", table, "--split={train: 0.75, test: 0.25}")
    options = ["--layout=folder", f"--input={tmp_path / 'in' / 'images'}", table]
    main(["shard", *options, f"--output={tmp_path / 'set'}", f"--held_out={tmp_path / 'seg'}"])
    held_out = ShardDataset(tmp_path / "seg", "test").record(0).image
    dataset = ShardDataset(tmp_path / "set")
    assert len(dataset) == 3
    assert held_out.shape not in [dataset.record(index).image.shape for index in range(3)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("file,group\np0_left,A\np0_left,B\n", "gives p0_left two groups, 'A' and 'B'"),
        (
            "file,group\np0_left,A\np0_left.png,B\n",
            "gives images/p0_left.png two groups, 'B' and 'A'",
        ),
        ("", "is empty"),
        ("file,group\np0_left,A\n", "does not say to whom images/.*png and 16 more belongs"),
    ],
)
def test_a_table_of_groups_that_is_not_certain_is_refused(table, reason, tmp_path, capsys):
    pictures(tmp_path / "in", NAMES)
    (tmp_path / "groups.csv").write_text(table)
    with pytest.raises(SystemExit):
        shard(tmp_path / "in", tmp_path / "set", f"--group={tmp_path / 'groups.csv'}")
    assert re.search(reason, capsys.readouterr().err)


def test_a_name_in_a_table_that_fits_two_files_is_refused(tmp_path):
    references = [Reference(f"{folder}/img.png") for folder in "ab"]
    table = tmp_path / "groups.csv"
    table.write_text("file,group\nimg.png,P7\n")
    with pytest.raises(UserError, match=r"may be a/img.png or b/img.png; name them by their paths"):
        regroup(references, str(table))
    table.write_text("file,group\nimg.png,P7\nimg,P7\na/img.png,P8\n")
    assert [reference.group for reference in regroup(references, str(table))] == ["P8", "P7"]
    table.write_text("file;group\n.\\a\\img.png;P7\nb/img.png;P8\n")
    assert [reference.group for reference in regroup(references, str(table))] == ["P7", "P8"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("ä", "cp1252"), ("ä", "utf-16"), ("a", "utf-16-le")]
)
def test_a_table_in_another_encoding_is_refused(name, encoding, tmp_path):
    table = tmp_path / "table.csv"
    table.write_bytes(f"file,group\n{name},1\n".encode(encoding))
    with pytest.raises(UserError, match="is not UTF-8; save it as UTF-8"):
        regroup([Reference(f"{name}.png")], str(table))


@pytest.mark.parametrize(
    ("name", "separator"),
    [("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", "\t"), ("t.TAB", "\t"), ("t.tsv", ";")],
)
def test_tables_may_be_separated_by_semicolons_or_tabs(name, separator, tmp_path):
    (tmp_path / name).write_text(f"file{separator}group\na{separator}P, 1\n")
    assert regroup([Reference("a.png")], str(tmp_path / name))[0].group == "P, 1"


def test_a_header_of_tabs_may_hold_semicolons(tmp_path):
    (tmp_path / "t.tsv").write_text("file\tgroup\tnote; free\na\tP1\tx\n")
    assert regroup([Reference("a.png")], str(tmp_path / "t.tsv"))[0].group == "P1"


def test_blanks_around_a_patient_number_mean_nothing(tmp_path):
    scans(tmp_path / "scans", ["7", "7 ", "8"])
    for path, number in zip(
        sorted((tmp_path / "scans").iterdir()), (" ID 7", "ID 7 ", "  "), strict=True
    ):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = number
        dataset.save_as(path)
    options = ["--layout=dicom", f"--input={tmp_path / 'scans'}", f"--output={tmp_path / 'set'}"]
    main(["shard", *options])
    dataset = ShardDataset(tmp_path / "set")
    groups = [dataset.meta(index)["group"] for index in range(3)]
    assert len(set(groups)) == 2
