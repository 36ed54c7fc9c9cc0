"""Samples for decoders without prompts: every target of every image, and images without any."""

import numpy as np
import pytest
import torch

from data_prep.records import Sample
from finetune.config import Augmentation, SegmentationDataConfig
from finetune.data.dataset import SegmentationDataset, collate

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}


@pytest.fixture
def dataset(make_shards, organs):
    """Six volumes of six slices, of which the last one holds nothing, and some lack a target."""
    shards = make_shards([organs(seed, depth=6) for seed in range(6)], LABELS)

    def make(every_target: bool = True, **options) -> SegmentationDataset:
        plain = {"augmentation": Augmentation(0, 0, 0, 0, 0, 0, 0), "masks_per_image": 1}
        config = SegmentationDataConfig(shards=shards, **plain | options)
        return SegmentationDataset(config, 64, every_target=every_target)

    return make


def test_each_image_has_a_mask_of_every_target_and_absent_ones_are_empty(dataset):
    data = dataset(without_targets=None)
    kinds = set()
    for index in range(data.images):
        sample = data[index, index]
        assert sample.targets.tolist() == [0, 1, 2] and sample.masks.shape == (3, 64, 64)
        held = tuple(torch.nonzero(sample.masks.flatten(1).any(1))[:, 0].tolist())
        assert held == sample.held  # though but one mask per image is asked for
        kinds.add(held)
    assert kinds == {(), (0, 2), (1, 2), (0, 1, 2)}
    batch = collate([data[0], data[data.images - 1]])
    assert batch.image.tolist() == [0, 0, 0, 1, 1, 1] and not batch.masks[3:].any()
    assert len(dataset(every_target=False)[0].masks) == 1


def test_images_without_targets_are_drawn_as_often_as_they_are(dataset):
    data = dataset(without_targets=None)
    total = len(data) + len(data.cases.empty)
    assert (total, data.images) == (36, 36) and data.without == len(data.cases.empty) / 36
    drawn = np.concatenate([data.order(epoch) for epoch in range(60)])
    share = (drawn >= len(data)).mean()
    assert abs(share - data.without) < 0.03
    assert dataset().images == len(data) and (dataset().order(0) < len(data)).all()


def test_a_set_whose_images_all_hold_a_target_has_none_to_draw(make_shards, organs):
    shards = make_shards([organs(seed) for seed in range(3)], LABELS)
    data = SegmentationDataset(
        SegmentationDataConfig(shards=shards, without_targets=None), 64, every_target=True
    )
    assert data.without == 0 and (data.order(0) < 3).all()


def test_slices_of_a_stack_have_every_target(make_shards, organs):
    shards = make_shards([organs(0, depth=6)], LABELS)
    config = SegmentationDataConfig(shards=shards, stack=3)
    data = SegmentationDataset(config, 64, every_target=True)
    last = data[len(data) - 1]
    assert [each.targets.tolist() for each in last.slices] == [[0, 1, 2]] * 3
    for each in last.slices:
        seen = torch.nonzero(each.masks.flatten(1).any(1))[:, 0].tolist()
        assert sorted(each.held) == seen


def test_an_image_without_targets_is_changed_at_random_as_others_are(make_shards):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    label = np.zeros((64, 64), np.uint8)
    full = label.copy()
    full[10:50, 10:50] = 1
    shards = make_shards(
        [Sample(pixels, full, group="a"), Sample(pixels, label, group="b")], LABELS
    )
    config = SegmentationDataConfig(shards=shards, without_targets=0.5)
    data = SegmentationDataset(config, 64, every_target=True)
    plain = torch.from_numpy(pixels)
    assert not torch.equal(data[1, 0].image[0], plain)
    assert not torch.equal(data[1, 0].image, data[1, 1].image)
