"""A set whose collection grew, shrank or was mended: what stays, and what is made again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.format.index import read_json
from data_prep.loader import ShardDataset

ROOT = Path(__file__).parents[3]


def save(path, value, side=40):
    """An image of one grey value, by which its record is known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), value).save(path)


@pytest.fixture
def images(tmp_path) -> Path:
    """Twelve images of grey values 0 to 11."""
    for value in range(12):
        save(tmp_path / "images" / f"{value:02d}.png", value)
    return tmp_path / "images"


def values(output, split="train"):
    """Grey values of the images in a split, sorted."""
    dataset = ShardDataset(output, split)
    return sorted(int(dataset.record(index).image[0, 0]) for index in range(len(dataset)))


def tars(output):
    return {path.name: path.read_bytes() for path in output.glob("*.tar")}


def state(output):
    """Inode and time of each tar: another one has been written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in output.glob("*.tar")}


def shard_of(output, value):
    """Name of the tar that holds the image of a grey value."""
    for path in sorted((output / "private").glob("*-*.csv")):
        if f",{value:02d}.png," in path.read_text():
            return f"{path.stem}.tar"
    raise KeyError(value)


def history(output):
    entries = read_json(output / "history.json")
    assert entries == read_json(output / "dataset.json")["history"]
    for entry in entries:
        assert len(entry.pop("date")) == 10
    return entries


def test_new_files_go_to_further_shards(images, tmp_path, shard_folder):
    output = tmp_path / "set"
    shard_folder(images, output)
    before, written = tars(output), state(output)
    for value in range(12, 17):
        save(images / f"{value}.png", value)
    shard_folder(images, output, extend=True)
    assert values(output) == list(range(17))
    after = state(output)
    assert {name: after[name] for name in before} == written
    assert sorted(after.keys() - before.keys()) == ["train-000003.tar", "train-000004.tar"]
    assert find_problems(output) == []
    assert history(output) == [
        {
            "files": 17,
            "files_added": 5,
            "shards_made_again": 0,
            "shards_removed": 0,
        }
    ]


def test_an_extended_set_is_finished_for_later_runs(images, tmp_path, shard_folder, folder_bytes):
    output = tmp_path / "set"
    shard_folder(images, output)
    save(images / "20.png", 20)
    shard_folder(images, output, extend=True)
    before = folder_bytes(output)
    shard_folder(images, output)
    shard_folder(images, output, extend=True)
    assert folder_bytes(output) == before
    save(images / "21.png", 21)
    with pytest.raises(UserError, match=r"\(1 new, 0 missing\): --extend"):
        shard_folder(images, output)
    assert folder_bytes(output) == before
    shard_folder(images, output, extend=True)
    assert values(output) == [*range(12), 20, 21]
    assert [entry["files_added"] for entry in history(output)] == [1, 1]


def test_a_shard_that_lost_a_file_is_made_again_and_no_other(images, tmp_path, shard_folder):
    output = tmp_path / "set"
    shard_folder(images, output)
    name = shard_of(output, 5)
    before = state(output)
    (images / "05.png").unlink()
    shard_folder(images, output, extend=True)
    assert values(output) == [value for value in range(12) if value != 5]
    assert {n for n, s in state(output).items() if s != before[n]} == {name}
    assert history(output)[0]["shards_made_again"] == 1
    assert find_problems(output) == []


def test_a_shard_that_lost_all_its_files_is_removed(images, tmp_path, shard_folder):
    output = tmp_path / "set"
    shard_folder(images, output)
    name = shard_of(output, 5)
    members = [value for value in range(12) if shard_of(output, value) == name]
    for value in members:
        (images / f"{value:02d}.png").unlink()
    shard_folder(images, output, extend=True)
    assert values(output) == [value for value in range(12) if value not in members]
    assert name not in tars(output)
    assert not (output / "private" / name.replace(".tar", ".csv")).exists()
    assert find_problems(output) == []
    assert history(output)[0]["shards_removed"] == 1


@pytest.mark.parametrize("how", ["size", "time"])
def test_a_file_changed_under_the_same_name_is_noticed(
    how, images, tmp_path, shard_folder, capsys, folder_bytes
):
    output = tmp_path / "set"
    shard_folder(images, output)
    name, before, whole = shard_of(output, 5), state(output), folder_bytes(output)
    was = (images / "05.png").stat()
    save(images / "05.png", 99, side=40 if how == "time" else 64)
    if how == "size":
        os.utime(images / "05.png", ns=(was.st_atime_ns, was.st_mtime_ns))
    shard_folder(images, output)
    assert "warning: 1 files have changed" in capsys.readouterr().err
    assert folder_bytes(output) == whole
    shard_folder(images, output, extend=True)
    assert values(output) == [*range(5), *range(6, 12), 99]
    assert {n for n, s in state(output).items() if s != before[n]} == {name}
    capsys.readouterr()
    shard_folder(images, output)
    assert "warning" not in capsys.readouterr().err


def test_contents_are_compared_on_demand(images, tmp_path, shard_folder):
    """Neither size nor time shows this change."""
    output = tmp_path / "set"
    shard_folder(images, output)
    name, before = shard_of(output, 5), tars(output)
    was = (images / "05.png").stat()
    save(images / "05.png", 6)  # as large as grey value 5
    assert (images / "05.png").stat().st_size == was.st_size
    os.utime(images / "05.png", ns=(was.st_atime_ns, was.st_mtime_ns))
    shard_folder(images, output, extend=True)
    assert tars(output) == before
    shard_folder(images, output, extend=True, check_contents=True)
    assert {n for n, data in tars(output).items() if data != before[n]} == {name}
    assert values(output) == [0, 1, 2, 3, 4, 6, 6, *range(7, 12)]
    assert history(output)[0]["shards_made_again"] == 1
    with pytest.raises(UserError, match="check_contents: needs --extend"):
        shard_folder(images, output, check_contents=True)


def test_a_collection_copied_elsewhere_with_new_times_changes_no_shard(
    images, tmp_path, shard_folder
):
    output = tmp_path / "set"
    shard_folder(images, output)
    before = tars(output)
    for path in images.iterdir():
        os.utime(path, ns=(1, 1))
    shard_folder(images, output, extend=True)
    assert tars(output) == before
    assert not (output / "history.json").exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_bytes_of_an_extension_do_not_depend_on_workers_or_tasks(
    workers, images, tmp_path, shard_folder, folder_bytes
):
    outputs = [tmp_path / "one", tmp_path / "other"]
    for output in outputs:
        shard_folder(images, output)
    (images / "05.png").unlink()
    save(images / "07.png", 99)  # changed, in a shard of another task than the new ones
    for value in range(12, 25):
        save(images / f"{value}.png", value)
    shard_folder(images, outputs[0], extend=True)
    if workers == 1:  # as three tasks of an array, the last one first
        for task in (2, 0, 1):
            shard_folder(images, outputs[1], extend=True, task=task, tasks=3)
    else:
        shard_folder(images, outputs[1], extend=True, workers=workers)
    one, other = map(folder_bytes, outputs)
    assert one == other


def test_an_extension_that_was_killed_is_continued(images, tmp_path, shard_folder, folder_bytes):
    """Also where the collection has changed again meanwhile."""
    for output in (tmp_path / "one", tmp_path / "killed"):
        shard_folder(images, output)
    for value in range(12, 24):
        save(images / f"{value}.png", value)
    shard_folder(images, tmp_path / "one", extend=True)
    shard_folder(images, tmp_path / "killed", extend=True, task=4, tasks=6)  # a part of it
    assert not (tmp_path / "killed" / "dataset.json").exists()
    with pytest.raises(UserError, match="--extend takes over"):
        shard_folder(images, tmp_path / "killed")
    save(images / "30.png", 30)
    shard_folder(images, tmp_path / "killed", extend=True, task=5, tasks=6)
    (images / "30.png").unlink()
    shard_folder(images, tmp_path / "killed", extend=True)
    assert folder_bytes(tmp_path / "killed") == folder_bytes(tmp_path / "one")


def test_patients_keep_their_split(tmp_path, save_image):
    """And new images of a patient go where the patient is."""

    def make(patients, views):
        for patient in patients:
            for view in views:
                pixels = np.full((40, 40), 10 * patient + view, np.uint8)
                name = f"p{patient:02d}_{view}.png"
                save_image(tmp_path / "in" / "images" / name, pixels)
                save_image(tmp_path / "in" / "masks" / name, pixels // 255)

    def shard(*options):
        main(
            [
                *("shard-seg", "--layout=pairs", f"--input={tmp_path / 'in'}"),
                *(f"--output={tmp_path / 'set'}", "--image=images/*.png", "--mask=masks/*.png"),
                *("--group=(p[0-9]+)_", "--shard_records=3", *options),
            ]
        )

    def patients_of(split):
        return {value // 10 for value in values(tmp_path / "set", split)}

    make(range(10), [0, 1])
    shard()
    before = {split: patients_of(split) for split in ("train", "test")}
    assert [len(patients) for patients in before.values()] == [8, 2]
    make(range(10), [2])
    make(range(10, 20), [0, 1])
    shard("--extend=true")
    after = {split: patients_of(split) for split in ("train", "test")}
    assert before["train"] < after["train"] and before["test"] < after["test"]
    assert not after["train"] & after["test"]
    assert [len(patients) for patients in after.values()] == [16, 4]
    assert len(values(tmp_path / "set", "train") + values(tmp_path / "set", "test")) == 50
    shard()  # finished, with the same splits


def test_another_split_of_the_same_files_is_refused_by_name(tmp_path, save_image, capsys):
    for case in range(5):
        save_image(tmp_path / "in" / "images" / f"{case}.png", np.zeros((40, 40), np.uint8))
        save_image(tmp_path / "in" / "masks" / f"{case}.png", np.eye(40, dtype=np.uint8))
    command = ["shard-seg", "--layout=pairs", f"--input={tmp_path / 'in'}"]
    command += [f"--output={tmp_path / 'set'}", "--image=images/*.png", "--mask=masks/*.png"]
    main(command)
    with pytest.raises(SystemExit):
        main([*command, "--split={train: 0.6, test: 0.4}"])
    error = capsys.readouterr().err
    assert "was made with --split {'train': 0.8, 'test': 0.2}, not" in error


def test_targets_in_another_order_are_refused_by_name(tmp_path, save_image, capsys):
    """Each has a bit of the mask, by its place."""
    for case in range(5):
        for kind in ("images", "disc", "cup"):
            save_image(tmp_path / "in" / kind / f"{case}.png", np.eye(40, dtype=np.uint8))
    command = ["shard-seg", "--layout=pairs", f"--input={tmp_path / 'in'}"]
    command += [f"--output={tmp_path / 'set'}", "--image=images/*.png"]
    main([*command, "--mask={disc: disc/*.png, cup: cup/*.png}"])
    with pytest.raises(SystemExit):
        main([*command, "--mask={cup: cup/*.png, disc: disc/*.png}", "--extend"])
    assert "was made with --mask" in capsys.readouterr().err


def test_another_collection_does_not_extend_a_set(images, tmp_path, shard_folder, folder_bytes):
    output = tmp_path / "set"
    shard_folder(images, output)
    before = folder_bytes(output)
    save(tmp_path / "others" / "x.png", 3)
    with pytest.raises(UserError, match="was made from other files, or with another --salt"):
        shard_folder(tmp_path / "others", output, extend=True)
    assert folder_bytes(output) == before


def test_a_set_of_an_earlier_version_is_extended(images, tmp_path, shard_folder):
    """Which had no plan, and was cut by the number of records alone."""
    output = tmp_path / "set"
    shard_folder(images, output)
    (output / "plan.json").unlink()
    for path in output.glob("*.index.json"):
        document = json.loads(path.read_text())
        del document["options"]["shard_bytes"]
        path.write_text(json.dumps(document))
    before = tars(output)
    shard_folder(images, output, shard_bytes=100)
    assert tars(output) == before
    save(images / "20.png", 20)
    shard_folder(images, output, extend=True)
    assert values(output) == [*range(12), 20]
    assert before.items() <= tars(output).items()


def test_shards_are_cut_by_bytes(tmp_path, shard_folder):
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (100, 100), dtype=np.uint8)
        save(tmp_path / "images" / f"{number}.png", 0)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    shard_folder(tmp_path / "images", tmp_path / "set", shard_records=100, shard_bytes=35_000)
    sizes = [
        part["bytes"]
        for part in read_json(tmp_path / "set" / "dataset.json")["splits"]["train"]["shards"]
    ]
    assert len(sizes) == 4 and max(sizes) < 60_000
    with pytest.raises(UserError, match="made with --shard_bytes 35000, not 50000"):
        shard_folder(tmp_path / "images", tmp_path / "set", shard_records=100, shard_bytes=50_000)


def test_a_mended_file_of_another_size_moves_no_other(tmp_path, shard_folder, folder_bytes):
    """Shards are cut by the sizes of the first run, whatever became of the files."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (100, 100), dtype=np.uint8)
        save(tmp_path / "images" / f"{number}.png", 0)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    whole = (tmp_path / "images" / "3.png").read_bytes()
    (tmp_path / "images" / "3.png").write_bytes(whole[:50])
    options = {"shard_records": 100, "shard_bytes": 35_000}
    shard_folder(tmp_path / "images", tmp_path / "set", max_bad=0.5, **options)
    before = {name: len(data) for name, data in tars(tmp_path / "set").items()}
    (tmp_path / "images" / "3.png").write_bytes(whole)
    document = shard_folder(tmp_path / "images", tmp_path / "set", **options)
    assert (document["records"], document["unreadable"]) == (12, 0)
    after = {name: len(data) for name, data in tars(tmp_path / "set").items()}
    assert after.keys() == before.keys()
    assert sum(after[name] != before[name] for name in after) == 1


def test_tasks_that_start_together_make_one_plan(images, tmp_path, shard_folder, folder_bytes):
    shard_folder(images, tmp_path / "one")
    command = [sys.executable, "-m", "data_prep", "shard", "--layout=folder", "--tasks=3"]
    command += [f"--input={images}", f"--output={tmp_path / 'set'}", "--shard_records=4"]
    tasks = [
        subprocess.Popen([*command, f"--task={task}", "--salt=tests"], cwd=ROOT)
        for task in range(3)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0, 0]
    assert tars(tmp_path / "set") == tars(tmp_path / "one")
    assert (tmp_path / "set" / "plan.json").read_bytes() == (
        tmp_path / "one" / "plan.json"
    ).read_bytes()


@pytest.mark.parametrize("tasks", [(1, 0), (0, 1)])
def test_no_task_merges_before_a_changed_shard_is_made_again(tasks, images, tmp_path, shard_folder):
    outputs = [tmp_path / "one", tmp_path / "array"]
    for output in outputs:
        shard_folder(images, output)
    changed = next(
        value for value in range(12) if shard_of(outputs[0], value) == "train-000000.tar"
    )
    save(images / f"{changed:02d}.png", 99)
    save(images / "30.png", 30)
    shard_folder(images, outputs[0], extend=True)
    documents = [
        shard_folder(images, outputs[1], extend=True, task=task, tasks=2) for task in tasks
    ]
    assert documents[0] is None and documents[1]["records"] == 13
    assert history(outputs[1]) == history(outputs[0])
    assert tars(outputs[1]) == tars(outputs[0])


def test_check_contents_that_was_interrupted_keeps_its_history(
    images, tmp_path, shard_folder, monkeypatch
):
    output = tmp_path / "set"
    shard_folder(images, output)
    was = (images / "05.png").stat()
    save(images / "05.png", 6)
    os.utime(images / "05.png", ns=(was.st_atime_ns, was.st_mtime_ns))
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.shards.write.merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shard_folder(images, output, extend=True, check_contents=True)
    shard_folder(images, output, extend=True, check_contents=True)
    assert history(output)[0]["shards_made_again"] == 1


@pytest.mark.parametrize("how", ["renamed files", "merged", "emptied"])
def test_a_patient_stays_in_its_split_whatever_becomes_of_the_names(
    how, tmp_path, save_image, capsys
):
    """All files of patients have new names; the table makes two patients one; none is left."""

    def table(groups):
        lines = [f"{file},{group}" for file, group in groups.items()]
        (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]) + "\n")

    def shard(*options):
        main(
            [
                *("shard-seg", "--layout=pairs", f"--input={tmp_path / 'in'}"),
                *(f"--output={tmp_path / 'set'}", "--image=images/*.png", "--mask=masks/*.png"),
                *(f"--group={tmp_path / 'groups.csv'}", "--shard_records=3", *options),
            ]
        )

    def patients_of(split):
        return {value // 10 for value in values(tmp_path / "set", split)}

    groups = {f"{patient}_{view}": f"p{patient}" for patient in range(10) for view in range(2)}
    for name in groups:
        patient, view = map(int, name.split("_"))
        pixels = np.full((40, 40), 10 * patient + view, np.uint8)
        save_image(tmp_path / "in" / "images" / f"{name}.png", pixels)
        save_image(tmp_path / "in" / "masks" / f"{name}.png", pixels // 255)
    table(groups)
    shard()
    train, test = patients_of("train"), patients_of("test")
    assert len(test) == 2
    if how == "renamed files":
        for path in (*(tmp_path / "in").rglob("*.png"),):
            if int(path.stem[0]) in test:
                path.rename(path.with_name(f"new{path.name}"))
        table({**groups, **{f"new{name}": group for name, group in groups.items()}})
        shard("--extend")
        assert (patients_of("train"), patients_of("test")) == (train, test)
        return
    if how == "merged":
        both = {f"p{min(train)}", f"p{min(test)}"}
        table({name: "q" if group in both else group for name, group in groups.items()})
        reason = "1 groups would have members in several splits"
    else:
        for path in (*(tmp_path / "in").rglob("*.png"),):
            if int(path.stem[0]) in test:
                path.unlink()
        reason = "no group would be left in test"
    with pytest.raises(SystemExit):
        shard("--extend")
    assert reason in capsys.readouterr().err
    assert (patients_of("train"), patients_of("test")) == (train, test)


def test_an_index_that_was_cut_is_made_again(images, tmp_path, shard_folder, folder_bytes, capsys):
    output = tmp_path / "set"
    shard_folder(images, output)
    before = folder_bytes(output)
    path = output / "train-000001.index.json"
    path.write_bytes(path.read_bytes()[:50])
    shard_folder(images, output)
    assert "train-000001.index.json: cannot be read" in capsys.readouterr().err
    assert folder_bytes(output) == before


def test_names_with_line_ends_do_not_spoil_the_tables(tmp_path, shard_folder, folder_bytes):
    for number, end in enumerate(("\r", "\n", "\r\n", '"', ",")):
        save(tmp_path / "images" / f"{number}{end}x.png", number)
    shard_folder(tmp_path / "images", tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    shard_folder(tmp_path / "images", tmp_path / "set", extend=True)
    assert folder_bytes(tmp_path / "set") == before
    save(tmp_path / "images" / "0\rx.png", 77)
    shard_folder(tmp_path / "images", tmp_path / "set", extend=True)
    assert values(tmp_path / "set") == [1, 2, 3, 4, 77]


@pytest.mark.parametrize("table", ["", "key,file\n", "key;bytes;modified\na;1,78E+18\n"])
def test_a_table_that_something_else_wrote_says_nothing(table, images, tmp_path, shard_folder):
    output = tmp_path / "set"
    shard_folder(images, output)
    for path in (output / "private").glob("train-*.csv"):
        path.write_text(table)
    assert shard_folder(images, output)["records"] == 12


def test_changes_that_cannot_be_noticed_are_said(images, tmp_path, shard_folder, capsys):
    output = tmp_path / "set"
    shard_folder(images, output)
    for path in (output / "private").glob("train-*.csv"):
        path.unlink()
    save(images / "05.png", 99)
    shard_folder(images, output, extend=True)
    assert "3 shards have no table in the private folder" in capsys.readouterr().err
    shard_folder(images, output, extend=True, check_contents=True)
    assert 99 in values(output)
