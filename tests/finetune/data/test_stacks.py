"""Stacks of neighbouring slices as training samples."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from finetune.config import Augmentation, SegmentationDataConfig
from finetune.data.cases import neighbours
from finetune.data.dataset import (
    SegmentationDataset,
    SegmentationSample,
    SegmentationStack,
    collate,
)
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}
NONE = Augmentation(0, 0, 0, 0, 0, 0, 0)


def dataset(shards: Path, stack: int, **options) -> SegmentationDataset:
    config = SegmentationDataConfig(shards=shards, stack=stack, **options)
    return SegmentationDataset(config, 32, seed=3)


def same(one: SegmentationSample, other: SegmentationSample) -> bool:
    tensors = ("image", "valid", "masks", "targets")
    return (one.key, one.draw) == (other.key, other.draw) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


def test_neighbours_lie_around_a_slice_and_inside_the_volume():
    for count in range(1, 12):
        for slices in range(1, 9):
            for depth in range(count):
                found = range(count)[neighbours(depth, count, slices)]
                assert depth in found and len(found) == min(slices, count)
                middle = found[len(found) // 2]
                assert middle == depth or found[0] == 0 or found[-1] == count - 1
    assert [neighbours(n, 9, 5).start for n in range(9)] == [0, 0, 0, 1, 2, 3, 4, 4, 4]


def test_a_stack_holds_its_slices_and_the_masks_of_the_targets_in_each(make_shards, organs):
    volume, resize = organs(0, depth=7), Resize((50, 70), 32)
    shards = make_shards([volume], LABELS)
    plain, stacks = (dataset(shards, count, augmentation=NONE) for count in (1, 5))
    assert len(stacks) == len(plain) and np.array_equal(stacks.order(2), plain.order(2))
    without = 0
    for index, image in enumerate(stacks.cases.images):
        stack = stacks[index, 40 + index]
        assert isinstance(stack, SegmentationStack) and stack.draw == 40 + index
        assert stack.key == plain[index].key and stack.key.endswith(f"/{image.depth}")
        around = range(7)[neighbours(image.depth, 7, 5)]
        for depth, each in zip(around, stack.slices, strict=True):
            assert torch.equal(each.valid, resize.valid())
            expected = resize.image(as_pixels(volume.image[depth]))
            assert torch.equal(each.image[:, each.valid], expected[:, each.valid])
            truths = {n: np.isin(volume.mask[depth], [*LABELS.values()][n]) for n in image.targets}
            held = [n for n, truth in truths.items() if truth.any()]
            assert each.targets.tolist() == held  # of the targets of the slice that was drawn
            for mask, target in zip(each.masks, held, strict=True):
                assert np.array_equal(mask, resize.mask(truths[target]))
            without += not held
    assert without > 0


def test_all_slices_of_a_stack_are_changed_alike(make_shards, organs):
    volume = organs(0, depth=6)
    volume.image[:], volume.mask[:] = volume.image[3], volume.mask[3]
    shards = make_shards([volume], LABELS)
    stacks, plain = dataset(shards, 3), dataset(shards, 1)
    seen = []
    for draw in range(4):
        first, *others = stacks[2, draw].slices
        assert all(same(first, other) for other in others) and len(others) == 2
        assert (first.image.float() - plain[2, draw].image.float()).abs().max() <= 1
        assert torch.equal(first.masks, plain[2, draw].masks)  # the same random stream
        seen.append(first.image)
    assert not torch.equal(seen[0], seen[1])


def test_thin_volumes_give_shorter_stacks_and_pictures_are_as_without(make_shards, organs):
    samples = [organs(0, depth=3), organs(1), organs(2, depth=6)]
    samples[0].mask[:] = 1
    shards = make_shards(samples, LABELS)
    stacks, plain = dataset(shards, 5), dataset(shards, 1)
    drawn: dict[int, list] = {}
    for index, image in enumerate(stacks.cases.images):
        sample = stacks[index, 7]
        length = len(sample.slices) if isinstance(sample, SegmentationStack) else 1
        drawn.setdefault(length, []).append(sample)
        if length == 1:
            assert image.depth is None and same(sample, plain[index, 7])
    assert {length: len(found) for length, found in drawn.items()} == {1: 1, 3: 3, 5: 5}

    batch = collate([drawn[5][0], drawn[1][0], drawn[3][2]])
    assert batch.stacks == (5, 1, 3) and len(batch.keys) == 3
    assert batch.images.shape == (9, 1, 32, 32) and batch.valid.shape == (9, 32, 32)
    slices = [*drawn[5][0].slices, drawn[1][0], *drawn[3][2].slices]
    for place, each in enumerate(slices):
        assert torch.equal(batch.images[place], each.image)
        assert torch.equal(batch.masks[batch.image == place], each.masks)
        assert torch.equal(batch.targets[batch.image == place], each.targets)
    assert batch.masks.flatten(1).any(1).all()


def test_few_masks_are_those_of_the_same_targets_in_all_slices(make_shards, organs):
    shards = make_shards([organs(0, depth=6)], LABELS)
    stacks = dataset(shards, 3, augmentation=NONE, masks_per_image=1)
    for draw in range(6):
        targets = [each.targets.tolist() for each in stacks[1, draw].slices]
        assert len({target for held in targets for target in held}) == 1


def test_one_slice_is_the_least():
    with pytest.raises(UserError, match=r"data\.stack is 0; it must be at least 1"):
        SegmentationDataConfig(shards=Path("x"), stack=0)
