"""A published set is what arrives at a hub on this machine, and what is read from there."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep.__main__ import main
from data_prep.loader.dataset import ShardDataset

NAME = "clinic/shapes"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A set of images with masks in two splits."""
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(8):
        for name, value in (("secretfolder", 20 * number), ("label", number % 3)):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((40, 40), value, np.uint8)).save(path)
    options = ["--image=secretfolder/*.png", "--mask=label/*.png", "--labels={a|b: [1], c: [1, 2]}"]
    output = folder / "set"
    main(["shard-seg", "--layout=pairs", f"--input={folder}", *options, f"--output={output}"])
    return output


@pytest.fixture
def shards(labelled, tmp_path):
    """That set, with what must not leave in its folder."""
    copy = shutil.copytree(labelled, tmp_path / "set")
    for name in ("private/salt", "contact_sheet.png", ".train-000009.tar.partial", "notes.txt"):
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("secret")
    return copy


@pytest.fixture
def run(hub, tmp_path):
    """Start a command as someone who is logged in to the hub."""
    hub.token = "hf_secret"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_secret")

    def start(*arguments, **settings):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",  # the hub speaks plain LFS
            "HOME": str(tmp_path),
            **settings,
        }
        command = [sys.executable, "-m", "data_prep", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    return start


def publish(run, shards, *options, **settings):
    return run("publish", "--shards", shards, "--repo", NAME, *options, **settings)


LICENSE = ("--license", "cc-by-4.0")
OPEN = (*LICENSE, "--private=false")


def refused(shards, capsys, *options):
    """The one line that publishing is refused with, in this process."""
    with pytest.raises(SystemExit):
        main(["publish", f"--shards={shards}", "--repo", NAME, *LICENSE, *options])
    return capsys.readouterr().err


def test_shards_indexes_dataset_json_and_a_card_arrive_and_nothing_else(hub, run, shards, labelled):
    done = publish(run, shards, *LICENSE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"published: {hub.url}/datasets/{NAME}\nread it as hf://datasets/{NAME}\n"
    )
    assert hub.created[NAME]["visibility"] == "private"
    arrived = dict(hub.sets[NAME])
    card = arrived.pop("README.md").decode()
    names = {path.name for end in ("*.tar", "*.index.json") for path in labelled.glob(end)}
    names.add("dataset.json")
    assert arrived == {name: (labelled / name).read_bytes() for name in names}
    assert {"train-000000.tar", "test-000000.index.json", "dataset.json"} <= names
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "tags": ["medical", "webdataset"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "test", "path": "test-*.tar"},
                    {"split": "train", "path": "train-*.tar"},
                ],
            }
        ],
    }
    for line in ("| records | 8 |", "| a\\|b | 1 |", "| c | 1, 2 |", "| median size | 40 x 40 |"):
        assert line in text.splitlines()
    assert str(shards.parent) not in card and "secret" not in card


def test_a_published_set_is_read_from_the_hub(run, shards):
    assert publish(run, shards, *LICENSE).returncode == 0
    done = run("info", "--shards", f"hf://datasets/{NAME}", "--sheet", shards.parent / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "segmentation (pairs)" in done.stdout
    (folder,) = (shards.parent / ".cache" / "samaritan").iterdir()
    near, far = ShardDataset(shards), ShardDataset(folder)
    assert len(near) == len(far) == 6
    for index in range(6):
        assert np.array_equal(near.record(index).image, far.record(index).image)


def test_an_upload_that_broke_off_is_continued(hub, run, shards):
    hub.lost = {"/commit/": 2}  # the card arrives, and of the shards only their contents
    done = publish(run, shards, *LICENSE)
    assert done.returncode == 2
    assert list(hub.sets[NAME]) == ["README.md"]
    sent = [line for line in hub.asked if line.startswith("PUT ")]
    assert len(sent) == 2
    assert publish(run, shards, *LICENSE).returncode == 0
    assert [line for line in hub.asked if line.startswith("PUT ")] == sent  # nothing twice
    assert "dataset.json" in hub.sets[NAME]


def test_a_set_that_shall_be_private_is_not_added_to_a_public_one(hub, run, shards):
    hub.sets[NAME] = {}
    done = publish(run, shards, *LICENSE)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        f"error: {NAME}: is public; give --private false if everyone may see what is published",
    )
    assert hub.sets[NAME] == {}
    assert publish(run, shards, *LICENSE, "--private", "false").returncode == 0
    assert "dataset.json" in hub.sets[NAME]


def test_who_may_not_write_is_told_what_to_do(hub, run, shards, tmp_path):
    (tmp_path / "home" / "token").unlink()
    done = publish(run, shards, *LICENSE)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "log in with `hf auth login` as someone with access" in line
    assert hub.sets == {}


def test_a_wrong_token_is_refused(on_hub, shards, capsys):
    on_hub.token_file.write_text("hf_wrong")
    line = refused(shards, capsys)
    assert "access denied (401); log in with `hf auth login` as someone with access" in line
    assert on_hub.sets == {}


@pytest.mark.parametrize("there", [{}, {"README.md": b"theirs"}])
def test_a_name_that_somebody_else_has_is_refused(on_hub, shards, capsys, there):
    on_hub.theirs, on_hub.sets[NAME] = {NAME}, dict(there)
    line = refused(shards, capsys, "--private=false")
    assert "access denied (403, Authorization error): does somebody else have this name" in line
    assert on_hub.sets[NAME] == there and not on_hub.uploaded


def test_a_name_that_holds_something_else_is_refused(on_hub, shards, capsys):
    """Another set, or files that are no set, make way only for who says so."""
    for there in ({"train-000000.tar": b"another"}, {"scans.zip": b"zip", "README.md": b"mine"}):
        on_hub.sets[NAME] = dict(there)
        line = refused(shards, capsys, "--private=false")
        assert f"{NAME}: has other files on the Hub (" in line and "--replace true" in line
        assert on_hub.sets[NAME] == there and not on_hub.uploaded
    main(["publish", f"--shards={shards}", "--repo", NAME, *OPEN, "--replace=true"])
    assert "scans.zip" not in on_hub.sets[NAME] and "dataset.json" in on_hub.sets[NAME]


def test_a_set_that_changed_takes_the_place_of_what_it_was(on_hub, shards):
    """A shard that the set has no longer is gone from the Hub too: it may be a patient's."""
    main(["publish", f"--shards={shards}", "--repo", NAME, *LICENSE])
    files = on_hub.sets[NAME]
    files |= {"train-000001.tar": b"withdrawn", "train-000001.index.json": b"{}", "notes.md": b""}
    main(["publish", f"--shards={shards}", "--repo", NAME, *LICENSE])
    assert not {"train-000001.tar", "train-000001.index.json"} & set(files)
    assert {"train-000000.tar", "test-000000.tar", "notes.md", "dataset.json"} <= set(files)


def test_an_upload_whose_connection_was_lost_sends_only_what_is_missing(on_hub, shards, capsys):
    on_hub.room = 1
    line = refused(shards, capsys)
    assert line.endswith("started again, it sends what has not arrived\n")
    assert list(on_hub.sets[NAME]) == ["README.md"] and len(on_hub.uploaded) == 1
    (first,) = on_hub.uploaded
    on_hub.room = 1_000
    on_hub.asked.clear()
    main(["publish", f"--shards={shards}", "--repo", NAME, *LICENSE])
    sent = [line.rpartition("/")[2] for line in on_hub.asked if line.startswith("PUT ")]
    assert len(sent) == 1 and first not in sent
    assert (shards / "train-000000.tar").read_bytes() == on_hub.sets[NAME]["train-000000.tar"]


def test_a_hub_that_does_not_answer_is_told(run, shards):
    done = publish(run, shards, *LICENSE, HF_ENDPOINT="http://127.0.0.1:9")
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert line.startswith(f"error: hf://datasets/{NAME}: cannot be published (ConnectError: ")
    assert line.endswith("HF_ENDPOINT; started again, it sends what has not arrived")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), "no whole shard set (dataset.json is"),
        (lambda folder: (folder / "train-000000.tar").write_bytes(b""), "altered (SHA-256 differs"),
        (lambda folder: (folder / "old-000000.tar").touch(), "not listed in dataset.json"),
    ],
)
def test_a_set_that_is_not_whole_stays_here(hub, run, shards, damage, reason):
    damage(shards)
    done = publish(run, shards, *LICENSE)
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]
    assert hub.asked == []


def test_no_file_beside_the_set_leaves_with_it(hub, run, shards):
    """A dataset.json that someone else wrote lists a shard outside the folder."""
    for path in list(shards.glob("train-000000.*")):
        shutil.copy(path, shards.parent)
    text = (shards / "dataset.json").read_text()
    (shards / "dataset.json").write_text(text.replace('"train-000000', '"../train-000000'))
    (shards / "train-000000.tar").unlink()
    done = publish(run, shards, *LICENSE)
    assert done.returncode == 2
    assert "the shard '../train-000000.tar' is not a file's name" in done.stderr
    assert hub.asked == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--repo", NAME), "--license is missing"),
        (("--repo", "shapes", *LICENSE), "repo: 'shapes' is not a name such as clinic/thyroid"),
        (("--repo", NAME, "--license", "CC BY"), "license: 'CC BY' is not a name such as cc-by"),
    ],
)
def test_bad_options_are_refused(shards, capsys, options, reason):
    with pytest.raises(SystemExit):
        main(["publish", "--shards", str(shards), *options])
    assert reason in capsys.readouterr().err


def test_a_set_whose_salt_everybody_knows_is_refused(run, shards, hub):
    """Sets of earlier versions had it, and neither a private folder nor a plan."""
    (shards / "private" / "salt").write_text("samaritan")
    for _ in range(2):
        done = publish(run, shards, *LICENSE)
        assert done.returncode == 2
        assert "the salt of earlier versions, which everybody knows" in done.stderr
        assert hub.created == {}
        shutil.rmtree(shards / "private", ignore_errors=True)
        (shards / "plan.json").unlink(missing_ok=True)
