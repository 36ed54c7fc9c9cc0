"""Job arrays: whichever task comes last merges, alone, and the set is that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_prep.common.errors import UserError
from data_prep.format.index import read_json
from data_prep.options import WriteOptions
from data_prep.shards.merge import claim_merge

ROOT = Path(__file__).parents[3]


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-*")}


def test_the_last_task_writes_the_same_set(image_folder, tmp_path, shard_folder, folder_bytes):
    shard_folder(image_folder, tmp_path / "one")
    array = tmp_path / "array"
    documents = []
    for task in (2, 0, 1):
        assert not (array / "dataset.json").exists()
        documents.append(shard_folder(image_folder, array, task=task, tasks=3))
        written = {path.name for path in array.glob("*.tar")}
        assert {f"train-{task:06d}.tar", f"train-{task + 3:06d}.tar"} <= written
    assert documents == [None, None, read_json(tmp_path / "one" / "dataset.json")]
    assert folder_bytes(array) == folder_bytes(tmp_path / "one")


def test_an_array_of_another_size_finishes_what_was_begun(
    image_folder, tmp_path, shard_folder, folder_bytes
):
    whole = tmp_path / "one"
    shard_folder(image_folder, whole)
    array = tmp_path / "array"
    shard_folder(image_folder, array, task=2, tasks=3)
    before = modified(array)
    assert len(before) == 2 * 2
    (array / ".merge-3").symlink_to("1")  # left by a task that was killed
    assert shard_folder(image_folder, array, task=0, tasks=2) is None
    assert shard_folder(image_folder, array, task=1, tasks=2) is not None
    assert before.items() <= modified(array).items()  # none was written twice
    assert folder_bytes(array) == folder_bytes(whole)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_a_claim_that_a_killed_task_left_stops_no_one(
    order, image_folder, tmp_path, shard_folder, folder_bytes
):
    whole, array = tmp_path / "one", tmp_path / "array"
    shard_folder(image_folder, whole)
    shard_folder(image_folder, array, task=1, tasks=3)
    (array / ".merge-3").symlink_to("1")
    documents = [shard_folder(image_folder, array, task=task, tasks=3) for task in order]
    assert documents[-1] is not None
    assert folder_bytes(array) == folder_bytes(whole)


def test_a_single_process_cleans_up_after_an_array(
    image_folder, tmp_path, shard_folder, folder_bytes
):
    whole, array = tmp_path / "one", tmp_path / "array"
    for folder in (whole, array):
        shard_folder(image_folder, folder)
    (array / ".merge-3").symlink_to("1")
    shard_folder(image_folder, array)
    assert folder_bytes(array) == folder_bytes(whole)


def test_tasks_at_the_same_time(image_folder, tmp_path, shard_folder, folder_bytes):
    shard_folder(image_folder, tmp_path / "one")
    command = [sys.executable, "-m", "data_prep", "shard", "--layout=folder", "--shard-records=4"]
    command += [f"--input={image_folder}", f"--output={tmp_path / 'array'}", "--tasks=3"]
    command += ["--salt=tests"]
    tasks = [
        subprocess.Popen([*command, f"--task={task}"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for task in range(3)
    ]
    printed = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0]
    assert any("24 records" in text for text in printed)
    result = folder_bytes(tmp_path / "array")
    del result["private/config.yaml"]
    config = yaml.safe_load(result.pop("config.yaml"))
    assert (config["task"], config["tasks"], config["workers"]) == (0, 1, 1)
    assert result == folder_bytes(tmp_path / "one")


def test_one_task_merges_at_a_time(tmp_path):
    first, second = (WriteOptions(output=tmp_path, task=task, tasks=2) for task in range(2))
    with claim_merge(first) as merges:
        assert merges
        with claim_merge(second) as merges_too:
            assert not merges_too
        with claim_merge(first) as again:  # as after it was killed
            assert again
    assert not list(tmp_path.iterdir())
    with claim_merge(second) as merges:
        assert merges
    assert not list(tmp_path.iterdir())


def test_a_claim_left_by_a_killed_task_is_its_own_again(
    image_folder, tmp_path, shard_folder, folder_bytes
):
    shard_folder(image_folder, tmp_path / "set")
    whole = folder_bytes(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    (tmp_path / "set" / ".merge-3").symlink_to("1")
    assert shard_folder(image_folder, tmp_path / "set", task=0, tasks=3) is None
    assert not (tmp_path / "set" / "dataset.json").exists()
    assert shard_folder(image_folder, tmp_path / "set", task=1, tasks=3)["records"] == 24
    assert folder_bytes(tmp_path / "set") == whole


def test_no_task_merges_before_a_shard_is_mended(tmp_path, make_images, shard_folder, folder_bytes):
    images, array = tmp_path / "images", tmp_path / "array"
    make_images(images)
    shard_folder(images, tmp_path / "one")
    path = images / "ill" / "image 005 é.png"
    whole, status = path.read_bytes(), path.stat()
    path.write_bytes(whole[:100])
    shard_folder(images, array, task=0, tasks=2, max_bad=0)
    with pytest.raises(UserError, match="1 images of 24 files could not be read"):
        shard_folder(images, array, task=1, tasks=2, max_bad=0)
    bad = next(p for p in array.glob("*.index.json") if read_json(p)["quarantined"])
    owner = int(bad.name.split("-")[1].split(".")[0]) % 2
    before = modified(array)
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    # the other task finds all shards there, but one of them to be made again
    assert shard_folder(images, array, task=1 - owner, tasks=2, max_bad=0) is None
    assert shard_folder(images, array, task=owner, tasks=2, max_bad=0)["records"] == 24
    after = modified(array)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {bad.name, bad.name.replace(".index.json", ".tar")}
    assert folder_bytes(array) == folder_bytes(tmp_path / "one")


def test_a_set_that_is_not_whole_has_no_dataset_json(
    image_folder, tmp_path, shard_folder, folder_bytes
):
    shard_folder(image_folder, tmp_path / "set")
    whole = folder_bytes(tmp_path / "set")
    (tmp_path / "set" / "train-000001.tar").unlink()
    (tmp_path / "set" / "train-000004.tar").unlink()
    (tmp_path / "set" / "train-000003.tar").unlink()
    assert shard_folder(image_folder, tmp_path / "set", task=1, tasks=3) is None
    assert not (tmp_path / "set" / "dataset.json").exists()
    assert shard_folder(image_folder, tmp_path / "set", task=0, tasks=3)["records"] == 24
    assert folder_bytes(tmp_path / "set") == whole
