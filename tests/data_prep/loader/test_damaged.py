"""Damaged shards: an error that names them, or records replaced the same way wherever they are."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_prep.common.cli import one_line_errors
from data_prep.common.errors import DamagedError, UserError
from data_prep.format.index import index_path, load_index
from data_prep.loader import damaged as damaged_module
from data_prep.loader.batches import build_loader
from data_prep.loader.damaged import DamagedList
from data_prep.loader.dataset import ShardDataset
from data_prep.loader.mixture import ShardMixture


@pytest.fixture
def copied(shard_set, tmp_path) -> Path:
    """24 records in shards of four, to be damaged."""
    return shutil.copytree(shard_set, tmp_path / "set")


@pytest.fixture
def lenient(monkeypatch) -> None:
    """Up to half of the records may be damaged, as the sets of these tests are small."""
    monkeypatch.setattr(damaged_module, "MOST", 0.5)


def truncated(shard: Path) -> set[int]:
    """Cut the third record's JSON and all behind it; positions of the records that are lost."""
    offset = load_index(shard).members[2]["json"][0]
    with shard.open("r+b") as file:
        file.truncate(offset)
    return {2, 3}


def altered(shard: Path) -> set[int]:
    """Flip a bit in the JSON of one record and in the image of another."""
    members = load_index(shard).members
    data = bytearray(shard.read_bytes())
    image = next(member for name, member in members[3].items() if name != "json")
    for offset, size, _ in (members[1]["json"], image):
        data[offset + size // 2] ^= 1
    shard.write_bytes(data)
    return {1, 3}


def missing(shard: Path) -> set[int]:
    shard.unlink()
    return {0, 1, 2, 3}


def without_index(shard: Path) -> set[int]:
    index_path(shard).unlink()
    return {0, 1, 2, 3}


def with_a_cut_index(shard: Path) -> set[int]:
    path = index_path(shard)
    path.write_bytes(path.read_bytes()[:-50])
    return {0, 1, 2, 3}


def of_another_set(shard: Path) -> set[int]:
    """An index with fewer records than dataset.json says."""
    document = json.loads(index_path(shard).read_text())
    document["records"].pop()
    index_path(shard).write_text(json.dumps(document))
    return {0, 1, 2, 3}


DAMAGES = [truncated, altered, missing, without_index, with_a_cut_index, of_another_set]


def key_and_noise(record, generator):
    return record.key, float(generator.random())


def as_list(samples):
    return samples


def mixture_of(*roots, listed: Path | None = None) -> ShardMixture:
    return ShardMixture(roots, transform=key_and_noise, damaged=listed)


def drawn(mixture, count=72, **options) -> list:
    loader = build_loader(mixture, 4, collate=as_list, **options)
    return [sample for batch in islice(iter(loader), count // 4) for sample in batch]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_fatal_in_one_line_unless_it_is_to_be_skipped(damage, copied, capsys):
    shard = sorted(copied.glob("*.tar"))[1]
    lost = damage(shard)
    dataset = ShardDataset(copied)
    for position in range(4):
        if position not in lost:
            assert dataset.record(4 + position).key
            continue
        for _ in range(2):  # also when it is known
            with pytest.raises(DamagedError, match=shard.stem) as error:
                dataset.record(4 + position)
            assert "\n" not in str(error.value)
    for workers in (0, 1) if damage is truncated else (0,):
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            drawn(mixture_of(copied), workers=workers)
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and shard.stem in line and line.count("\n") == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_records_are_replaced_by_whole_ones_and_listed_once(
    damage, copied, shard_set, tmp_path, lenient, capsys
):
    shard = sorted(copied.glob("*.tar"))[1]
    lost = {4 + position for position in damage(shard)}
    listed = tmp_path / "damaged.jsonl"
    mixture = mixture_of(copied, listed=listed)
    samples, whole = drawn(mixture), drawn(mixture_of(shard_set))
    keys = [ShardDataset(shard_set).record(index).key for index in range(24)]
    for (key, noise), (wanted, same_noise) in zip(samples, whole, strict=True):
        if keys.index(wanted) in lost:
            assert keys.index(key) not in lost
        else:
            assert key == wanted
        assert noise == same_noise  # augmentation is that of the draw
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {line["index"] for line in lines} == lost and len(lines) == len(lost)
    assert mixture.damaged.count() == len(lost)
    for line in lines:
        assert line["shard"] == shard.name and line["position"] == line["index"] - 4
        assert shard.stem in line["reason"]
    assert capsys.readouterr().err.count("\n") == 1  # the first is told


def test_replacements_are_the_same_on_other_processes_and_after_a_restart(
    copied, tmp_path, lenient
):
    truncated(sorted(copied.glob("*.tar"))[1])
    missing(sorted(copied.glob("*.tar"))[4])
    listed = tmp_path / "damaged.jsonl"
    expected = drawn(mixture_of(copied, listed=tmp_path / "other.jsonl"))
    ranks = [
        drawn(
            mixture_of(copied, listed=listed), 32, rank=rank, world_size=2, workers=2,
            samples_seen=8,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    parts = [samples[start : start + 4] for start in range(0, 32, 4) for samples in ranks]
    assert [sample for part in parts for sample in part] == expected[8:72]
    lines = [json.loads(line)["index"] for line in listed.read_text().splitlines()]
    assert sorted(lines) == [6, 7, 16, 17, 18, 19]


def test_replacements_come_from_the_same_set_and_vary(copied, shard_set, tmp_path, lenient):
    lost = missing(sorted(copied.glob("*.tar"))[2])
    mixture = mixture_of(shard_set, copied, listed=tmp_path / "damaged.jsonl")
    index = 24 + 8 + min(lost)
    keys = {ShardDataset(shard_set).record(index).key for index in range(24)}
    found = [mixture[index, draw][0] for draw in range(200)]
    assert set(found) <= keys and len(set(found)) > 10
    lines = [json.loads(line) for line in (tmp_path / "damaged.jsonl").read_text().splitlines()]
    # a replacement may be damaged itself, and is then replaced too
    assert lines[0]["index"] == index and {line["index"] for line in lines} <= set(range(32, 36))
    assert found == [mixture[index, draw][0] for draw in range(200)]


def test_too_many_end_the_run_in_one_line(copied, tmp_path):
    truncated(sorted(copied.glob("*.tar"))[1])
    with pytest.raises(UserError, match=r"lists 1 damaged records, more than 1% of 24; the last:"):
        drawn(mixture_of(copied, listed=tmp_path / "damaged.jsonl"))


def test_a_set_with_nothing_left_ends_the_run_in_one_line(copied, shard_set, tmp_path, lenient):
    for shard in copied.glob("*.tar"):
        shard.unlink()
    with pytest.raises(UserError, match="no other record was found"):
        drawn(mixture_of(copied, shard_set, shard_set, listed=tmp_path / "damaged.jsonl"))


def test_what_the_transform_refuses_is_not_damage(copied, tmp_path, lenient):
    def refuse(record, generator):
        raise UserError("a volume")

    mixture = ShardMixture([copied], transform=refuse, damaged=tmp_path / "damaged.jsonl")
    with pytest.raises(UserError, match="a volume"):
        mixture[0]


def test_a_remote_shard_that_is_gone_is_damage_and_one_out_of_reach_is_not(
    shard_set, tmp_path, lenient, monkeypatch
):
    """A network may be back at the next start, which must then draw the same."""
    memory = fsspec.filesystem("memory")
    memory.put(str(shard_set), "/gone", recursive=True)
    name = sorted(shard_set.glob("*.tar"))[1].name
    memory.rm(f"/gone/{name}")
    options = {"transform": key_and_noise, "damaged": tmp_path / "damaged.jsonl"}
    mixture = ShardMixture(["memory://gone"], cache=tmp_path / "cache", **options)
    mixture[5]
    assert json.loads((tmp_path / "damaged.jsonl").read_text())["shard"] == name

    def unreachable(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(memory), "get_file", unreachable)
    monkeypatch.setattr("data_prep.loader.remote.ATTEMPTS", 1)
    with pytest.raises(UserError, match="no route to host") as error:
        mixture[9]
    assert not isinstance(error.value, DamagedError)


def _add_all(path: Path) -> int:
    listed = DamagedList(path, 10000)
    for index in np.random.default_rng().permutation(50):
        listed.add(int(index), "a.tar", 0, "x" * 300)
    return listed.count()


def test_many_processes_list_a_record_once_and_half_a_line_is_mended(tmp_path):
    path = tmp_path / "damaged.jsonl"
    path.write_text('{"index": 3, "shard": "a.tar"}\n{"index": 4, "sha')
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        counts = list(pool.map(_add_all, [path] * 4))
    assert counts == [50] * 4
    indices = [json.loads(line)["index"] for line in path.read_text().splitlines()]
    assert sorted(indices) == list(range(50)) and indices[0] == 3


def test_a_list_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    listed = DamagedList(tmp_path / "absent" / "damaged.jsonl", 1000)
    listed.add(7, "a.tar", 0, "cut")
    assert listed.count() == 1 and "cannot be written" in capsys.readouterr().err
