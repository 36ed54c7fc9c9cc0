"""An extension that is interrupted, shared by tasks, or asked for something else."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from helpers.extended import ROOT, history, save, shard_of, tars, values


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
