"""Splits and labels of stage one: no patient in two parts, classes by name or table."""

import json

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.format.index import read_json
from data_prep.loader import ShardDataset
from data_prep.records import Reference
from data_prep.shards.labels import relabel

NAMES = [
    f"train/PNEUMONIA/person{person}_{('bacteria', 'virus')[person % 2]}_{view}.png"
    for person in range(8)
    for view in range(2)
] + [f"train/NORMAL/IM-01{number:02d}-0001.png" for number in range(8)]


@pytest.fixture
def chest(tmp_path):
    """Files named as those of a collection of chest X-rays; each has another brightness."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40), 9 * number, np.uint8)).save(path)
    return tmp_path / "in"


def shard(folder, output, *options):
    main(["shard", "--layout=folder", f"--input={folder}", f"--output={output}", *options])


def refused(capsys, folder, output, *options):
    with pytest.raises(SystemExit) as caught:
        shard(folder, output, *options)
    assert caught.value.code
    return capsys.readouterr().err


def read_set(output):
    """File, label, group and split of each record."""
    found = {}
    for split in read_json(output / "dataset.json")["splits"]:
        dataset = ShardDataset(output, split)
        for index in range(len(dataset)):
            record = dataset.record(index)
            name = NAMES[int(record.image[0, 0]) // 9]
            found[name] = (record.meta["label"], record.meta["group"], split)
    return found


def label_of(name):
    return next(label for label in ("bacteria", "virus", "NORMAL") if label in name)


def test_labels_by_pattern_and_a_split_that_cuts_no_person(chest, tmp_path, capsys):
    shard(
        chest,
        tmp_path / "set",
        "--label=NORMAL|bacteria|virus",
        "--group=^(person[0-9]+|IM-[0-9]+)",
        "--split={train: 0.75, test: 0.25}",
    )
    out, err = capsys.readouterr()
    assert "label: NORMAL 8, bacteria 8, virus 8; 0 files without" in out
    assert "warning" not in err
    found = read_set(tmp_path / "set")
    assert {name: label for name, (label, _, _) in found.items()} == {
        name: label_of(name) for name in NAMES
    }
    splits = {}
    for _, group, split in found.values():
        splits.setdefault(group, set()).add(split)
    assert sorted(map(len, splits.values())) == [1] * 16
    assert sorted(split for (split,) in splits.values()) == ["test"] * 4 + ["train"] * 12
    document = read_json(tmp_path / "set" / "dataset.json")
    assert document["classes"] == {"NORMAL": 8, "bacteria": 8, "virus": 8}
    assert document["source"]["split"] == {"train": 0.75, "test": 0.25}
    assert document["source"]["label"] == "NORMAL|bacteria|virus"


def test_labels_by_table_are_in_the_set_and_its_place_is_not(chest, tmp_path):
    rows = [f"{name},{label_of(name)}" for name in NAMES[:20]] + [f"{NAMES[20]},"]
    table = tmp_path / "labels of patients.csv"
    table.write_text("file,label\n" + "\n".join(rows))
    shard(chest, tmp_path / "set", f"--label={table}")
    found = read_set(tmp_path / "set")
    assert [found[name][0] for name in NAMES] == [label_of(name) for name in NAMES[:20]] + [
        None
    ] * 4
    assert {split for _, _, split in found.values()} == {"train"}
    assert read_json(tmp_path / "set" / "dataset.json")["source"]["label"] == "CSV"
    shared = [path for path in (tmp_path / "set").iterdir() if path.is_file()]
    assert not [path for path in shared if b"labels of" in path.read_bytes()]


def test_a_changed_table_is_another_set(chest, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "\n".join(f"{name},{label_of(name)}" for name in NAMES))
    shard(chest, tmp_path / "set", f"--label={table}")
    table.write_text(table.read_text().replace(f"{NAMES[0]},bacteria", f"{NAMES[0]},virus"))
    error = refused(capsys, chest, tmp_path / "set", f"--label={table}")
    assert "other groups, classes, labels or splits" in error


def test_labels_override_those_of_a_layout():
    references = [Reference("a/1.png", label="a"), Reference("b/2.png", label="b")]
    assert [each.label for each in relabel(references, "^1")] == ["1", None]
    assert relabel(references, "") == references


def test_sets_made_before_these_options_go_on(chest, tmp_path, folder_bytes, capsys):
    shard(chest, tmp_path / "set")
    for path in (tmp_path / "set").glob("*.index.json"):
        document = json.loads(path.read_text())
        assert not {"split", "label"} & set(document["options"])
    before = folder_bytes(tmp_path / "set")
    shard(chest, tmp_path / "set")
    assert folder_bytes(tmp_path / "set") == before
    for option, said in (
        ("--split={train: 0.5, test: 0.5}", "made with --split null, not {'train': 0.5"),
        ("--label=NORMAL|bacteria|virus", "made with --label null, not NORMAL"),
    ):
        assert said in refused(capsys, chest, tmp_path / "set", option)
    assert folder_bytes(tmp_path / "set") == before


def test_persons_keep_their_split_when_a_set_is_extended(chest, tmp_path):
    options = ("--group=^(person[0-9]+|IM-[0-9]+)", "--split={train: 0.75, test: 0.25}")
    late = [chest / name for name in NAMES if name.endswith("_1.png")]
    for path in late:
        path.rename(tmp_path / path.name)
    shard(chest, tmp_path / "set", *options)
    before = read_set(tmp_path / "set")
    for path in late:
        (tmp_path / path.name).rename(path)
    shard(chest, tmp_path / "set", *options, "--extend")
    after = read_set(tmp_path / "set")
    assert len(after) == len(NAMES)
    split_of = {group: split for _, group, split in before.values()}
    assert split_of == {group: split for _, group, split in after.values()}


def test_names_that_look_like_one_patient_are_warned_of(chest, tmp_path, capsys):
    shard(chest, tmp_path / "set", "--split={train: 0.5, test: 0.5}")
    assert "say so with --group" in capsys.readouterr().err
    shard(chest, tmp_path / "whole")
    assert "say so with --group" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--label=(", "label: '(' is not a regular expression"),
        ("--label=absent", "gives none of 24 files a label"),
        ("--label=.*", "24 files 24 labels, as names of files or patients do"),
        ("--split={train: 0.5, test: 0.6}", "are not positive fractions that sum to 1"),
    ],
)
def test_bad_options_are_refused_in_a_line(option, said, chest, tmp_path, capsys):
    error = refused(capsys, chest, tmp_path / "set", option)
    assert said in error.splitlines()[-1]
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,group\na,b\n", "has no column 'label'"),
        ("file,label\na,b\na,c\n", "gives a two labels, 'b' and 'c'"),
    ],
)
def test_a_table_that_is_not_certain_is_refused(text, said, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        relabel([Reference("a.png")], str(tmp_path / "t.csv"))


def test_a_split_of_dicom_files_needs_to_know_the_patients(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number in range(6):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.PatientID, dataset.SOPInstanceUID = f"ID {number // 2}", f"1.2.{number}"
        dataset.SeriesInstanceUID = f"1.3.{number}"
        dataset.save_as(tmp_path / "in" / f"scan{number}.dcm")
    command = ["shard", "--layout=dicom", f"--input={tmp_path / 'in'}"]
    command += [f"--output={tmp_path / 'set'}", "--split={train: 0.5, test: 0.5}"]
    with pytest.raises(SystemExit):
        main(command)
    error = capsys.readouterr().err
    assert "dicom learns to whom an image belongs only when it reads it" in error
    main([*command, "--group=scan([0-9])"])
    splits = read_json(tmp_path / "set" / "dataset.json")["splits"]
    assert {name: split["groups"] for name, split in splits.items()} == {"train": 3, "test": 3}


def test_a_split_of_its_own_is_kept(tmp_path, capsys):
    for name in ("train/1_left", "train/2_left", "test/3_left"):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)
    with pytest.raises(SystemExit):
        command = ["shard", "--layout=eyepacs", f"--input={tmp_path / 'in'}"]
        main([*command, f"--output={tmp_path / 'set'}", "--split={train: 0.5, test: 0.5}"])
    assert "layout eyepacs has a split of its own" in capsys.readouterr().err


def test_a_layout_without_files_takes_no_label(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["shard", "--layout=samples", f"--output={tmp_path / 'set'}", "--label=a"])
    assert "label: layout samples has no files of yours" in capsys.readouterr().err
