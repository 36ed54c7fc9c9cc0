"""Other libraries read the shards as they are."""

from dataclasses import replace

import datasets
import numpy as np
import webdataset
from PIL import Image

from data_prep.loader.dataset import ShardDataset
from data_prep.options import WriteOptions
from data_prep.records import Reference, Sample, Source
from data_prep.shards.manifest import plan_shards
from data_prep.shards.write import write_shards


def test_webdataset_reads_the_same_pixels(shard_set):
    dataset = ShardDataset(shard_set)
    ours = {record.key: record for record in map(dataset.record, range(len(dataset)))}
    urls = [str(path) for path in sorted(shard_set.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert {sample["__key__"] for sample in theirs} == ours.keys()
    for sample in theirs:
        expected = Image.fromarray(ours[sample["__key__"]].image).convert("RGB")
        assert np.array_equal(np.asarray(sample["png"]), np.asarray(expected))
        assert sample["json"].items() <= ours[sample["__key__"]].meta.items()


def test_datasets_reads_the_same_pixels(shard_set, tmp_path):
    dataset = ShardDataset(shard_set)
    ours = {record.key: record for record in map(dataset.record, range(len(dataset)))}
    theirs = datasets.load_dataset(
        "webdataset",
        data_files=[str(path) for path in sorted(shard_set.glob("*.tar"))],
        split="train",
        cache_dir=str(tmp_path),
    )
    assert set(theirs["__key__"]) == ours.keys()
    for sample in theirs:
        assert np.array_equal(np.asarray(sample["png"]), ours[sample["__key__"]].image)
        assert sample["json"]["label"] == ours[sample["__key__"]].meta["label"]


def blank_image(reference):
    """A reader for sources made up in tests."""
    meta = {"spacing": [0.5, 0.5]} if reference.label else {}
    yield Sample(np.full((8, 8), 9, np.uint8), np.zeros((8, 8), np.uint8), meta=meta)


def test_datasets_reads_what_is_unknown_in_the_first_records(tmp_path):
    names = [Reference(f"{number}.png") for number in range(12)]
    (shard,) = plan_shards(names, 100, seed=0)
    references = [
        replace(reference, label=None if place < 8 else "ill")
        for place, reference in enumerate(shard.references)
    ]
    source = Source("made up", references, blank_image, {}, {"lesion": [1]})
    write_shards(source, WriteOptions(output=tmp_path / "set"))
    theirs = datasets.load_dataset(
        "webdataset",
        data_files=[str(tmp_path / "set" / "train-000000.tar")],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(theirs) == 12
    dataset = ShardDataset(tmp_path / "set")
    assert (dataset.meta(0)["label"], dataset.meta(0)["spacing"]) == (None, None)
    assert (dataset.meta(11)["label"], dataset.meta(11)["spacing"]) == ("ill", [0.5, 0.5])
    assert dataset.meta(0)["present"] == []
