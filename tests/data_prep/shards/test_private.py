"""What leaves the hospital names no file and no patient; what does stays in the private folder."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from data_prep.__main__ import main
from data_prep.loader import ShardDataset

ROOT = Path(__file__).parents[3]


@pytest.fixture
def named_folder(tmp_path) -> Path:
    """Eight images and one damaged file, in folders that are named after patients."""
    folder = tmp_path / "Roe Jane archive"
    for number in range(8):
        path = folder / f"ROE_JANE_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40 + number, 40), 20 * number).save(path)
    (folder / "ROE_JANE_0" / "broken.png").write_bytes(b"no image")
    return folder


def shard(folder, output, *options):
    arguments = ["--layout=folder", f"--input={folder}", f"--output={output}", "--max_bad=0.5"]
    main(["shard", *arguments, "--shard_records=4", *options])


def shared(output):
    """Everything of a set but its private folder."""
    files = [path for path in output.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.parent == output}


def test_nothing_that_is_shared_names_a_file_or_the_salt(named_folder, tmp_path):
    shard(named_folder, tmp_path / "set", "--salt=open sesame", "--group=[A-Z_]+[0-9]")
    main(["info", f"--shards={tmp_path / 'set'}"])
    files = shared(tmp_path / "set")
    assert {"config.yaml", "quarantine.jsonl", "dataset.json", "contact_sheet.png"} < set(files)
    for secret in (b"open sesame", b"ROE", b"Roe", b"archive", b"broken", b"0.png"):
        assert secret not in b"".join(data for name, data in files.items() if name != "config.yaml")
    config = yaml.safe_load(files["config.yaml"])
    assert config["max_bad"] == 0.5 and not {"input", "output", "salt"} & set(config)
    (line,) = files["quarantine.jsonl"].splitlines()
    assert json.loads(line).keys() == {"key", "kind", "reason"}


def test_the_private_folder_says_what_each_key_stands_for(named_folder, tmp_path):
    shard(named_folder, tmp_path / "set", "--group=(ROE_JANE_[0-9])")
    rows = {}
    for path in (tmp_path / "set" / "private").glob("train-*.csv"):
        with path.open(newline="") as file:
            rows |= {row["key"]: row for row in csv.DictReader(file)}
    dataset = ShardDataset(tmp_path / "set")
    for index in range(8):
        record = dataset.record(index)
        row = rows[record.key]
        path = named_folder / row["file"]
        assert Image.open(path).size == record.image.shape[::-1]
        assert (row["group"], row["patient"]) == (record.meta["group"], path.parent.name)
        assert int(row["bytes"]) == path.stat().st_size
        assert int(row["modified"]) == path.stat().st_mtime_ns
    (unreadable,) = [row for key, row in rows.items() if row["file"].endswith("broken.png")]
    line = json.loads((tmp_path / "set" / "quarantine.jsonl").read_text())
    assert line["key"] == unreadable["key"]


def test_only_the_owner_may_look(named_folder, tmp_path):
    shard(named_folder, tmp_path / "set")
    private = tmp_path / "set" / "private"
    assert private.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in private.iterdir()}
    assert {"salt", "config.yaml", "quarantine.csv", "train-000000.csv"} < set(modes)
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "set" / "dataset.json").stat().st_mode & 0o777 != 0o600


def test_each_set_draws_a_salt_and_keeps_it(named_folder, tmp_path, folder_bytes):
    for name in ("a", "b"):
        shard(named_folder, tmp_path / name)
    salts = [(tmp_path / name / "private" / "salt").read_text() for name in ("a", "b")]
    assert len(salts[0]) >= 32 and salts[0] != salts[1]
    groups = [
        {ShardDataset(tmp_path / name).meta(index)["group"] for index in range(8)}
        for name in ("a", "b")
    ]
    assert groups[0].isdisjoint(groups[1])
    before = folder_bytes(tmp_path / "a")
    (tmp_path / "a" / "train-000001.tar").unlink()
    shard(named_folder, tmp_path / "a")
    assert folder_bytes(tmp_path / "a") == before


def test_another_salt_than_the_sets_is_refused(named_folder, tmp_path, capsys):
    shard(named_folder, tmp_path / "set", "--salt=one")
    shard(named_folder, tmp_path / "set")
    shard(named_folder, tmp_path / "set", "--salt=one")
    with pytest.raises(SystemExit):
        shard(named_folder, tmp_path / "set", "--salt=two")
    assert "was made with another --salt" in capsys.readouterr().err


def test_tasks_that_start_together_agree_on_a_salt(named_folder, tmp_path):
    command = [sys.executable, "-m", "data_prep", "shard", "--layout=folder", "--tasks=4"]
    command += [f"--input={named_folder}", f"--output={tmp_path / 'set'}", "--shard_records=2"]
    tasks = [
        subprocess.Popen([*command, f"--task={task}", "--max_bad=0.5"], cwd=ROOT)
        for task in range(4)
    ]
    assert [task.wait(timeout=120) for task in tasks] == [0, 0, 0, 0]
    assert len(ShardDataset(tmp_path / "set")) == 8
    assert {path.name for path in (tmp_path / "set").glob(".*")} == set()


def test_a_set_of_an_earlier_version_goes_on_with_its_salt(
    named_folder, tmp_path, shard_folder, folder_bytes
):
    """Such sets had the salt `samaritan`, unless one was given, and no private folder."""
    for salt in ("samaritan", "given"):
        output = tmp_path / salt
        shard_folder(named_folder, output, salt=salt, max_bad=0.5)
        before = folder_bytes(output)
        for path in (output / "private").iterdir():
            path.unlink()
        (output / "private").rmdir()
        (output / "plan.json").unlink()
        (output / "train-000001.index.json").unlink()
        shard_folder(named_folder, output, salt="" if salt == "samaritan" else salt, max_bad=0.5)
        after = folder_bytes(output)
        # what is there is not made again
        for name in ("private/train-000000.csv", "private/train-000002.csv", "plan.json"):
            del before[name]
        assert after == before


def test_the_private_config_runs_again(named_folder, tmp_path, capsys, folder_bytes):
    shard(named_folder, tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    main(["shard", "--config", str(tmp_path / "set" / "private" / "config.yaml")])
    assert "8 records" in capsys.readouterr().out
    assert folder_bytes(tmp_path / "set") == before


def test_a_set_inside_its_input_is_not_part_of_it(named_folder, tmp_path, capsys):
    """Its tables and the contact sheet that `info` draws there are not more of the collection."""
    output = named_folder / "shards"
    shard(named_folder, output)
    main(["info", f"--shards={output}"])
    assert (output / "contact_sheet.png").is_file()
    capsys.readouterr()
    shard(named_folder, output)
    shard(named_folder, tmp_path / "another")
    assert capsys.readouterr().out.count("8 records") == 2


def test_a_lost_salt_is_asked_for_and_a_wrong_one_is_not_kept(
    named_folder, tmp_path, capsys, folder_bytes
):
    output = tmp_path / "set"
    shard(named_folder, output)
    salt = (output / "private" / "salt").read_text()
    before = folder_bytes(output)
    (output / "private" / "salt").unlink()
    for option, reason in (
        ((), "put it back, or give the --salt that it was made with"),
        (("--salt=wrong",), "was made from other files, or with another --salt"),
    ):
        with pytest.raises(SystemExit):
            shard(named_folder, output, *option)
        assert reason in capsys.readouterr().err
        assert not (output / "private" / "salt").exists()
    shard(named_folder, output, f"--salt={salt}")
    assert folder_bytes(output) == before


def test_the_input_folder_is_no_output(named_folder, capsys):
    with pytest.raises(SystemExit):
        shard(named_folder, named_folder)
    assert "is the input folder; name another" in capsys.readouterr().err
    assert not (named_folder / "private").exists()
