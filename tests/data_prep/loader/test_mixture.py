"""Several shard sets in one run."""

from itertools import islice

import fsspec
import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.loader.batches import GlobalBatches, build_loader
from data_prep.loader.dataset import ShardDataset
from data_prep.loader.mixture import ShardMixture


@pytest.fixture(scope="module")
def second_set(tmp_path_factory, make_images, shard_folder):
    """Ten records in shards of four, other images than those of `shard_set`."""
    folder = tmp_path_factory.mktemp("second")
    make_images(folder / "images", count=10, seed=1)
    shard_folder(folder / "images", folder / "set", salt="second")
    return folder / "set"


def test_without_weights_every_sample_comes_once_an_epoch(shard_set, second_set):
    mixture = ShardMixture([shard_set, second_set], seed=3, shuffle_shards=2)
    assert len(mixture) == 34
    for epoch in range(3):
        order = mixture.order(epoch)
        assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(34))
        # each set keeps the order it has on its own, which keeps reading sequential
        alone = [ShardDataset(root, seed=3, shuffle_shards=2) for root in (shard_set, second_set)]
        assert np.array_equal(order[order < 24], alone[0].order(epoch))
        assert np.array_equal(order[order >= 24] - 24, alone[1].order(epoch))
    keys = [ShardDataset(root).record(0).key for root in (shard_set, second_set)]
    assert [mixture.record(index).key for index in (0, 24)] == keys


def test_weights_are_the_shares_of_every_epoch(shard_set, second_set):
    mixture = ShardMixture([shard_set, second_set], weights=[2, 6.5])
    assert mixture.counts == [8, 26]
    stream = np.concatenate([mixture.order(epoch) for epoch in range(15)])
    large, small = stream[stream < 24], stream[stream >= 24] - 24
    assert len(large) == 15 * 8 and len(small) == 15 * 26
    # 120 samples are five rounds of the larger set, 390 are 39 of the smaller one
    assert (np.bincount(large) == 5).all() and (np.bincount(small) == 39).all()
    for n in range(5):
        assert set(large[24 * n : 24 * n + 24]) == set(range(24))
    halves = (mixture.order(0)[:17] < 24).sum(), (mixture.order(0)[17:] < 24).sum()
    assert min(halves) > 0  # the sets take turns


def test_order_depends_on_seed_and_epoch_alone(shard_set, second_set):
    roots = [shard_set, second_set]
    first = ShardMixture(roots, [2, 1], seed=1).order(4)
    assert np.array_equal(ShardMixture(roots, [4, 2], seed=1).order(4), first)
    assert not np.array_equal(ShardMixture(roots, [2, 1], seed=1).order(5), first)
    assert not np.array_equal(ShardMixture(roots, [2, 1], seed=2).order(4), first)


def keys_and_noise(record, generator):
    return record.key, float(generator.random())


def as_list(samples):
    return samples


def test_resume_is_exact_on_another_number_of_processes(shard_set, second_set):
    mixture = ShardMixture([shard_set, second_set], [1, 2], transform=keys_and_noise)
    whole = [
        sample
        for batch in islice(build_loader(mixture, 8, collate=as_list), 12)
        for sample in batch
    ]
    ranks = [
        list(
            islice(
                build_loader(mixture, 2, rank, 3, workers=1, samples_seen=40, collate=as_list), 6
            )
        )
        for rank in range(3)
    ]
    resumed = [sample for batch in range(6) for rank in ranks for sample in rank[batch]]
    assert resumed == whole[40:76]
    assert len({noise for _, noise in whole}) == 96


def test_one_set_is_that_set(shard_set):
    alone = ShardDataset(shard_set, seed=5, transform=keys_and_noise)
    mixture = ShardMixture([shard_set], seed=5, transform=keys_and_noise)
    assert np.array_equal(mixture.order(2), alone.order(2))
    assert mixture[3, 77] == alone[3, 77]


def test_sets_may_be_remote(shard_set, second_set, tmp_path):
    fsspec.filesystem("memory").put(str(second_set), "/second", recursive=True)
    near = ShardMixture([shard_set, second_set], [1, 1])
    far = ShardMixture([shard_set, "memory://second"], [1, 1], cache=tmp_path)
    assert np.array_equal(far.order(0), near.order(0))
    assert [far.record(n).key for n in (3, 30)] == [near.record(n).key for n in (3, 30)]
    assert list(tmp_path.glob("*/*.tar"))


def test_a_million_records_go_on_after_a_billion_samples(tmp_path):
    for name, shards in (("large", 3000), ("small", 100)):
        listed = [{"name": f"train-{n:06d}.tar", "records": 450} for n in range(shards)]
        (tmp_path / name).mkdir()
        document = {"splits": {"train": {"shards": listed}}}
        write_json(tmp_path / name / "dataset.json", document)
    mixture = ShardMixture([tmp_path / "large", tmp_path / "small"], [1, 1])
    first = next(iter(GlobalBatches(mixture, 256, samples_seen=10**9 + 7)))
    draw = 10**9 + 7
    assert first[0] == (mixture.order(draw // len(mixture))[draw % len(mixture)], draw)


def test_wrong_weights_are_refused(shard_set, second_set):
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(UserError, match="must be 2 positive numbers"):
            ShardMixture([shard_set, second_set], weights)
    with pytest.raises(UserError, match="give one of the sets none of the 34 samples"):
        ShardMixture([shard_set, second_set], [1, 1e-9])
    with pytest.raises(UserError, match="at least one"):
        ShardMixture([])
    with pytest.raises(IndexError):
        ShardMixture([shard_set, second_set]).record(34)
