"""The loader: every sample once an epoch, in an order that a single integer resumes."""

import multiprocessing
import pickle
import time
import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.loader.batches import GlobalBatches, build_loader
from data_prep.loader.dataset import ShardDataset


def take(loader, batches: int) -> list:
    return list(islice(iter(loader), batches))


def keys_and_noise(record, generator):
    """A transform whose outcome shows which record and which random numbers it was given."""
    return record.key, float(generator.random())


def as_list(samples):
    return samples


def test_order_is_a_permutation_that_depends_on_seed_and_epoch(shard_set):
    dataset = ShardDataset(shard_set, seed=3, shuffle_shards=2)
    first = dataset.order(0)
    assert first.dtype == np.int64
    assert np.array_equal(np.sort(first), np.arange(24))
    assert np.array_equal(ShardDataset(shard_set, seed=3, shuffle_shards=2).order(0), first)
    assert not np.array_equal(dataset.order(1), first)
    assert not np.array_equal(ShardDataset(shard_set, seed=4, shuffle_shards=2).order(0), first)


def test_order_stays_within_windows_of_shards(shard_set):
    dataset = ShardDataset(shard_set, shuffle_shards=2)  # shards of four records
    windows = dataset.order(0).reshape(3, 8) // 4
    assert all(len(set(window)) == 2 for window in windows)
    assert sorted(shard for window in windows for shard in set(window)) == list(range(6))


def test_ranks_and_workers_share_the_stream(shard_set):
    dataset = ShardDataset(shard_set, transform=keys_and_noise)
    stream = [
        dataset[(int(index), draw)]
        for draw, index in enumerate(np.concatenate([dataset.order(epoch) for epoch in range(3)]))
    ]
    ranks = [
        take(build_loader(dataset, 4, rank, 2, workers=2, collate=as_list), 9) for rank in (0, 1)
    ]
    seen = [sample for batch in range(9) for rank in ranks for sample in rank[batch]]
    assert seen == stream
    assert len({key for key, _ in seen[:24]}) == 24
    assert len({noise for _, noise in seen}) == 72  # another augmentation every epoch


@pytest.mark.parametrize("seen", [0, 8, 32, 40])
def test_resume_is_exact_on_another_number_of_processes(shard_set, seen):
    dataset = ShardDataset(shard_set, transform=keys_and_noise)
    whole = [s for batch in take(build_loader(dataset, 8, collate=as_list), 12) for s in batch]
    ranks = [
        take(build_loader(dataset, 2, rank, 3, samples_seen=seen, collate=as_list), 6)
        for rank in range(3)
    ]
    resumed = [sample for batch in range(6) for rank in ranks for sample in rank[batch]]
    assert resumed == whole[seen : seen + 36]


def test_batches_larger_than_the_set_go_round(shard_set):
    dataset = ShardDataset(shard_set)
    batch = next(iter(GlobalBatches(dataset, 60)))
    assert [draw for _, draw in batch] == list(range(60))
    assert np.bincount([index for index, _ in batch]).tolist().count(3) == 12


def test_order_and_resume_at_scale(tmp_path):
    """1.35 million records in 3000 shards: order and resume within 2 s and 500 MB."""
    shards = [{"name": f"train-{n:06d}.tar", "records": 450} for n in range(3000)]
    write_json(tmp_path / "dataset.json", {"splits": {"train": {"shards": shards}}})
    tracemalloc.start()
    start = time.perf_counter()
    dataset = ShardDataset(tmp_path)
    batches = iter(GlobalBatches(dataset, 256, 1, 2, samples_seen=10**9 + 7))
    first = next(batches)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2 and peak < 500e6
    draw = 10**9 + 7 + 256
    assert first[0] == (dataset.order(draw // 1350000)[draw % 1350000], draw)


def test_spawned_processes_read_the_same(shard_set):
    dataset = ShardDataset(shard_set)
    dataset.record(0)  # opens a shard, which must not travel
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert np.array_equal(copy.record(5).image, dataset.record(5).image)
    # as a DataLoader's worker: OpenMP's threads do not outlive a fork
    with multiprocessing.get_context("fork").Pool(2, torch.set_num_threads, (1,)) as pool:
        keys = pool.map(_key, [(dataset, index) for index in range(24)])
    assert keys == [dataset.record(index).key for index in range(24)]


def _key(job):
    dataset, index = job
    return dataset.record(index).key


def test_few_files_stay_open(shard_set):
    dataset = ShardDataset(shard_set, shuffle_shards=1)
    dataset._open_limit = 2
    for index in (*range(24), *range(24)):
        dataset.record(index)
    assert len(dataset._open) == 2


def test_missing_sets_and_splits_are_told(shard_set, tmp_path):
    with pytest.raises(UserError, match=r"no shard set \(dataset\.json is missing\)"):
        ShardDataset(tmp_path)
    with pytest.raises(UserError, match="has no split 'val', only train"):
        ShardDataset(shard_set, "val")
    write_json(tmp_path / "dataset.json", {"splits": {"train": {"shards": []}}})
    with pytest.raises(UserError, match="has no records"):
        ShardDataset(tmp_path)
    shards = [{"name": "train-000000.tar", "records": 4}]
    write_json(tmp_path / "dataset.json", {"splits": {"train": {"shards": shards}}})
    with pytest.raises(UserError, match=r"train-000000\.index\.json: missing"):
        ShardDataset(tmp_path).record(0)
    with pytest.raises(IndexError):
        ShardDataset(shard_set).record(24)
