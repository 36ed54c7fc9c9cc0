"""Running again into a folder that holds a set: what is continued, and what is refused and why."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.common.errors import UserError
from data_prep.loader import ShardDataset


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_size": 32}, "made with --max_size null, not 32"),
        ({"window": (0.0, 9.0)}, r"made with --window auto, not \[0.0, 9.0\]"),
        ({"shard_records": 8}, "made with --shard_records 4, not 8"),
        ({"seed": 3}, "made with --seed 0, not 3"),
        ({"salt": "another"}, "made with another --salt"),
    ],
)
def test_another_option_is_refused_by_name(
    change, reason, image_folder, tmp_path, shard_folder, folder_bytes
):
    shard_folder(image_folder, tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    with pytest.raises(UserError, match=f"set: was {reason}; give another --output"):
        shard_folder(image_folder, tmp_path / "set", **change)
    assert folder_bytes(tmp_path / "set") == before


def test_files_that_come_and_go_are_counted(make_images, tmp_path, shard_folder, folder_bytes):
    make_images(tmp_path / "images", count=12)
    shard_folder(tmp_path / "images", tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    (tmp_path / "images" / "ill" / "image 001 é.png").unlink()
    for name in ("new", "newer"):
        Image.new("L", (40, 40)).save(tmp_path / "images" / f"{name}.png")
    with pytest.raises(UserError, match=r"other files \(2 new, 1 missing\): --extend takes over"):
        shard_folder(tmp_path / "images", tmp_path / "set")
    assert folder_bytes(tmp_path / "set") == before


def change_options(folder, change):
    """Rewrite the options that the indexes of a set keep."""
    for path in folder.glob("*.index.json"):
        document = json.loads(path.read_text())
        change(document["options"])
        path.write_text(json.dumps(document))


def test_a_set_made_before_an_option_existed_has_its_default(
    image_folder, tmp_path, shard_folder, folder_bytes
):
    shard_folder(image_folder, tmp_path / "set")
    change_options(tmp_path / "set", lambda options: options.pop("class_folders"))
    before = folder_bytes(tmp_path / "set")
    shard_folder(image_folder, tmp_path / "set")
    after = folder_bytes(tmp_path / "set")
    assert {n: b for n, b in after.items() if n != "dataset.json"} == {
        n: b for n, b in before.items() if n != "dataset.json"
    }
    with pytest.raises(UserError, match="made with --class_folders False, not True"):
        shard_folder(image_folder, tmp_path / "set", class_folders=True)


def test_a_set_that_knows_an_option_of_a_later_version_is_refused_by_name(
    image_folder, tmp_path, shard_folder
):
    shard_folder(image_folder, tmp_path / "set")
    change_options(tmp_path / "set", lambda options: options.update(sharpen=2))
    with pytest.raises(UserError, match="made with --sharpen 2, not null"):
        shard_folder(image_folder, tmp_path / "set")
    assert len(ShardDataset(tmp_path / "set")) == 24


def test_a_moved_collection_continues_its_set(make_images, tmp_path, shard_folder, folder_bytes):
    make_images(tmp_path / "images", count=12)
    shard_folder(tmp_path / "images", tmp_path / "set")
    before = folder_bytes(tmp_path / "set")
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "set" / "train-000001.tar").unlink()
    shard_folder(tmp_path / "moved", tmp_path / "set")
    assert folder_bytes(tmp_path / "set") == before


def test_the_advice_for_masks_with_soft_edges_works_when_followed(tmp_path, capsys):
    """A run that could store nothing leaves nothing that another option would clash with."""
    soft = np.linspace(0, 255, 1600).astype(np.uint8).reshape(40, 40)
    for case in range(4):
        Image.fromarray(255 - soft).save(tmp_path / f"{case}.jpg")
        Image.fromarray(soft).save(tmp_path / f"{case}.png")
    command = ["shard-seg", "--layout=pairs", f"--input={tmp_path}", f"--output={tmp_path / 'set'}"]
    command += ["--image=*.jpg", "--mask=*.png", "--shard_records=2"]
    with pytest.raises(SystemExit):
        main(command)
    assert "--threshold (such as 128)" in capsys.readouterr().err
    main([*command, "--threshold=128"])
    assert np.array_equal(ShardDataset(tmp_path / "set").record(0).mask, soft >= 128)
    with pytest.raises(SystemExit):
        main([*command, "--threshold=100"])
    assert "was made with --threshold 128, not 100" in capsys.readouterr().err
