"""verify and info, on sets that were damaged in every way."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.commands.info import COLOURS, contact_sheet
from data_prep.commands.verify import find_problems
from data_prep.common.errors import UserError
from data_prep.format.index import load_index
from data_prep.loader.dataset import Record, ShardDataset


@pytest.fixture
def copy(shard_set, tmp_path):
    return shutil.copytree(shard_set, tmp_path / "copy")


def test_a_whole_set_has_no_problem(copy):
    assert find_problems(copy) == []


def test_an_altered_byte_is_found_in_its_member(copy):
    shard = copy / "train-000001.tar"
    index = load_index(shard)
    offset, size, _ = index.members[2]["png"]
    data = bytearray(shard.read_bytes())
    data[offset + size // 2] ^= 1
    shard.write_bytes(data)
    assert find_problems(copy) == [
        f"{shard}: altered (SHA-256 differs)",
        f"{shard}: {index.keys[2]}.png is altered",
    ]


def test_every_flipped_byte_of_an_index_is_found(copy):
    path = copy / "train-000001.index.json"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.choice(len(whole), 60, replace=False):
        data = bytearray(whole)
        data[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        assert any(str(path) in problem for problem in find_problems(copy)), position
    path.write_bytes(whole)
    assert find_problems(copy) == []


def test_a_set_of_an_earlier_version_is_checked_as_far_as_it_says(copy):
    """Its dataset.json does not name the hashes of the indexes."""
    document = json.loads((copy / "dataset.json").read_text())
    for split in document["splits"].values():
        for shard in split["shards"]:
            del shard["index_sha256"]
    (copy / "dataset.json").write_text(json.dumps(document))
    assert find_problems(copy) == []


def test_truncation_is_found(copy):
    shard = copy / "train-000001.tar"
    index = load_index(shard)
    offset = index.members[3]["png"][0]
    shard.write_bytes(shard.read_bytes()[: offset + 10])
    problems = find_problems(copy)
    assert f"{shard}: {index.keys[3]}.png is truncated" in problems
    assert not any(index.keys[2] in problem for problem in problems)
    dataset = ShardDataset(copy)
    with pytest.raises(UserError, match="shorter than its index"):
        dataset.record(7)
    assert dataset.record(6).key == index.keys[2]


def test_missing_and_foreign_shards_are_found(copy):
    (copy / "train-000000.tar").rename(copy / "train-000009.tar")
    (copy / "train-000002.index.json").unlink()
    problems = "\n".join(find_problems(copy))
    assert "train-000000.tar: missing" in problems
    assert "train-000009.tar: not listed" in problems
    assert "train-000002.index.json: missing" in problems


def test_a_wrong_index_is_found(copy):
    path = copy / "train-000000.index.json"
    document = json.loads(path.read_text())
    document["records"][1]["members"]["png"][0] += 512
    path.write_text(json.dumps(document))
    key = document["records"][1]["key"]
    assert find_problems(copy) == [
        f"{path}: wrong location of {key}.png",
        f"{path}: altered (SHA-256 differs)",
    ]


def test_commands_tell_and_fail(copy, capsys):
    main(["verify", "--shards", str(copy)])
    assert "complete and unaltered" in capsys.readouterr().out
    (copy / "train-000000.tar").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["verify", "--shards", str(copy)])
    assert stop.value.code == 2
    assert "train-000000.tar: missing" in capsys.readouterr().out


def test_info_prints_the_fingerprint_and_draws_a_sheet(copy, tmp_path, capsys):
    main(["info", "--shards", str(copy), "--sheet", str(tmp_path / "sheet.png"), "--images", "10"])
    printed = capsys.readouterr().out
    assert "24 records, 24 groups, 6 shards" in printed
    assert "classes healthy" in printed
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 256, 1024, 3)
    assert all(sheet[:256, 256 * n : 256 * n + 72].any() for n in range(4))
    assert sheet[512:, 256:512].any() and not sheet[512:, 512:].any()
    with pytest.raises(SystemExit):
        main(["info", "--shards", str(copy), "--images", "0"])
    assert "images and measured must be at least 1" in capsys.readouterr().err


def test_outlines_are_one_pixel_wide_and_lie_on_the_masks():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:200, 300:400] = 1
    mask[120:180, 350:450] = 2  # cuts into the first
    mask[:, 700] = 3  # a vessel
    first, second, third = COLOURS[:3]
    sheet = contact_sheet([Record("key", np.full(mask.shape, 9, np.uint8), mask, {})])
    drawn = (sheet != 9).any(axis=2)
    expected = np.zeros(mask.shape, bool)
    expected[100:200, 300:400] = True
    expected[101:199, 301:399] = False
    expected[120:180, 350:450] = True
    expected[121:179, 351:449] = False
    expected[:, 700] = True
    assert np.array_equal(drawn, expected)
    for colour, value in ((first, 1), (second, 2), (third, 3)):
        assert (sheet[drawn & (mask == value)] == colour).all()


def test_an_unknown_option_is_refused_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["shard", "--layout", "folder", "--output", str(tmp_path), "--max-bat", "1"])
    assert stop.value.code != 0
    assert "max_bat" in capsys.readouterr().err
