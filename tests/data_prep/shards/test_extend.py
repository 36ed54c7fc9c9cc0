"""A set whose collection grew, shrank or was mended: what stays, and what is made again."""

import os

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.format.index import read_json
from helpers.extended import history, save, shard_of, state, tars, values


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
