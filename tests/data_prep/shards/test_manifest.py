"""Manifests to splits and shards."""

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.records import Reference, Sample
from data_prep.shards.manifest import assign_splits, plan_shards
from data_prep.shards.summary import Summary, count_pixels, dataset_document


def test_plan_does_not_depend_on_the_order_of_files():
    references = [Reference(f"image{number}.png", records=number % 3) for number in range(50)]
    plan = plan_shards(references, 8, seed=1)
    assert plan_shards(references[::-1], 8, seed=1) == plan
    assert plan_shards(references, 8, seed=2) != plan
    listed = [reference for shard in plan for reference in shard.references]
    assert sorted(listed, key=lambda r: r.path) == sorted(references, key=lambda r: r.path)
    assert all(sum(r.records for r in shard.references) <= 8 for shard in plan)


def test_splits_keep_groups_whole():
    references = [Reference(f"{n}.png", group=f"patient {n // 5}") for n in range(100)]
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    split = assign_splits(references, fractions, seed=0)
    of_group = {(reference.group, reference.split) for reference in split}
    assert len(of_group) == 20  # each group in one split
    sizes = [sum(s == name for _, s in of_group) for name in ("train", "val", "test")]
    assert sizes == [12, 4, 4]
    assert (
        assign_splits(references[::-1], {"train": 0.6, "val": 0.2, "test": 0.2}, 0)[::-1] == split
    )
    three = assign_splits(references[:15], {"train": 0.9, "val": 0.05, "test": 0.05}, seed=0)
    assert len({(reference.group, reference.split) for reference in three}) == 3
    assert {reference.split for reference in three} == {"train", "val", "test"}
    with pytest.raises(UserError, match="1 groups cannot be divided into 2"):
        assign_splits(references[:5], {"train": 0.9, "test": 0.1}, seed=0)
    with pytest.raises(UserError, match="sum to 1"):
        assign_splits(references, {"train": 0.9, "test": 0.2}, seed=0)


def test_sizes_of_images_and_volumes_in_one_set():
    summary = Summary()
    for shape, volume in (((40, 50), False), ((40, 60, 3), False), ((7, 30, 90), True)):
        sample = Sample(np.zeros(shape, np.uint8), volume=volume)
        summary.add(count_pixels(sample), {"group": "g", "label": None, "modality": None})
    index = {
        "shard": "train-000000.tar",
        "bytes": 0,
        "sha256": "",
        "index_sha256": "",
        "quarantined": [],
    }
    index |= {"options": {"layout": "folder", "seed": 0}, "summary": summary.document()}
    document = dataset_document(None, [index])
    assert document["source"] == {"layout": "folder", "seed": 0}
    assert document["sizes"] == {
        "smallest": [1, 30, 50],
        "median": [1, 40, 60],
        "largest": [7, 40, 90],
    }
