"""Training samples: which images there are, how often they come, and what is done to them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from data_prep.loader.batches import build_loader
from data_prep.records import Sample
from finetune.config import Augmentation, CaseSelection, SegmentationDataConfig
from finetune.data.augment import change_intensity, random_affine, warp
from finetune.data.cases import LabelledCases
from finetune.data.dataset import SegmentationDataset, collate
from pretrain.encoder.geometry import Resize
from pretrain.encoder.pixels import as_pixels

LABELS = {"liver": [1], "tumour": [2], "both": [1, 2]}
NONE = Augmentation(0, 0, 0, 0, 0, 0, 0)


def config(shards: Path, **options) -> SegmentationDataConfig:
    return SegmentationDataConfig(shards=shards, **{"augmentation": NONE} | options)


def empty(seed: int = 99) -> Sample:
    return Sample(np.full((20, 30), 7, np.uint8), np.zeros((20, 30), np.uint8), group=f"p{seed}")


@pytest.mark.parametrize("depths", [(None, None), (6, 5)])
def test_images_are_those_in_which_decoding_finds_a_target(make_shards, organs, depths):
    samples = [organs(seed, depth=depth) for seed, depth in enumerate(depths)]
    blank = organs(9, depth=depths[0])
    blank.mask[:] = 0
    cases = LabelledCases(CaseSelection(shards=make_shards([*samples, blank], LABELS)))
    expected = []
    for index in range(3):
        mask = cases.shards.record(index).mask
        for depth, labels in [(None, mask)] if mask.ndim == 2 else enumerate(mask):
            found = [n for n, values in enumerate(LABELS.values()) if np.isin(labels, values).any()]
            if found:
                expected.append((index, depth, tuple(found)))
    assert [(i.record, i.depth, i.targets) for i in cases.images] == expected
    assert len(expected) == sum(1 if depth is None else depth - 1 for depth in depths)


def test_read_gives_stored_pixels_and_the_masks_of_the_targets_held(make_shards, organs):
    sample = organs(3, depth=6)
    shards = make_shards([sample], LABELS)
    cases = LabelledCases(CaseSelection(shards=shards, targets=["both", "tumour"]))
    assert list(cases.targets) == ["tumour", "both"]  # in the order of the shard set
    image = next(image for image in cases.images if image.depth == 2)
    key, pixels, masks = cases.read(image)
    assert key == f"{cases.shards.record(0).key}/2"
    assert np.array_equal(pixels, sample.image[2])
    assert np.array_equal(masks, [sample.mask[2] == 2, sample.mask[2] > 0])
    last = cases.images[-1]
    assert (last.depth, last.targets) == (4, (1,))  # only liver is left there
    assert np.array_equal(cases.read(last)[2], [sample.mask[4] == 1])


def test_few_cases_are_whole_patients_and_nested(make_shards, organs):
    samples = [organs(seed) for seed in (0, 0, 1, 2, 2, 3)] + [empty()]
    shards = make_shards(samples, LABELS)
    chosen = []
    for count in (1, 2, 3, 4):
        cases = LabelledCases(CaseSelection(shards=shards, cases=count), seed=5)
        groups = {cases.shards.meta(image.record)["group"] for image in cases.images}
        assert len(groups) == count
        metas = [cases.shards.meta(index) for index in range(len(cases.shards))]
        held = [n for n, m in enumerate(metas) if m["group"] in groups and m["present"]]
        assert [image.record for image in cases.images] == held
        chosen.append(groups)
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]
    others = [
        LabelledCases(CaseSelection(shards=shards, cases=1), seed=seed).images for seed in range(9)
    ]
    assert any(images != others[0] for images in others)
    with pytest.raises(UserError, match=r"data\.cases is 5, and .* has 4 groups"):
        LabelledCases(CaseSelection(shards=shards, cases=5))


def test_what_is_not_there_is_named(make_shards, organs):
    shards = make_shards([organs(0)], LABELS)
    with pytest.raises(UserError, match="no target 'spleen', only liver, tumour, both"):
        LabelledCases(CaseSelection(shards=shards, targets=["liver", "spleen"]))
    with pytest.raises(UserError, match="no split 'test'"):
        LabelledCases(CaseSelection(shards=shards, split="test"))
    unlabelled = make_shards([Sample(np.zeros((9, 9), np.uint8))], None, "unlabelled")
    with pytest.raises(UserError, match="has no masks"):
        LabelledCases(CaseSelection(shards=unlabelled))
    blank = make_shards([empty()], LABELS, "blank")
    with pytest.raises(UserError, match="no image holds any of liver, tumour, both"):
        LabelledCases(CaseSelection(shards=blank))
    with pytest.raises(UserError, match=r"data\.cases is 0"):
        CaseSelection(shards=shards, cases=0)


def unbalanced(make_shards, organs) -> Path:
    """30 images with target 1, of which 3 have target 2."""
    samples = [organs(seed) for seed in range(30)]
    for sample in samples[3:]:
        sample.mask[sample.mask == 2] = 0
    return make_shards(samples, {"common": [1], "rare": [2]})


def test_rare_targets_are_drawn_as_often_as_common_ones(make_shards, organs):
    shards = unbalanced(make_shards, organs)
    dataset = SegmentationDataset(config(shards), 32, seed=1)
    rare = {n for n, image in enumerate(dataset.cases.images) if 1 in image.targets}
    order = dataset.order(0)
    assert len(rare) == 3 and len(order) == 30
    counts = np.bincount(order, minlength=30)
    assert sum(counts[list(rare)]) == 15
    assert max(counts[list(rare)]) - min(counts[list(rare)]) <= 1
    assert max(counts[n] for n in range(30) if n not in rare) == 1
    for start in range(0, 30, 2):  # in every round one of each
        assert len(rare.intersection(order[start : start + 2].tolist())) == 1
    assert np.array_equal(order, SegmentationDataset(config(shards), 32, seed=1).order(0))
    assert not np.array_equal(order, dataset.order(1))
    assert not np.array_equal(order, SegmentationDataset(config(shards), 32, seed=2).order(0))


def test_an_epoch_is_a_permutation_where_all_images_hold_all_targets(make_shards, organs):
    shards = make_shards([organs(seed) for seed in range(11)], LABELS)
    for targets in (None, ["liver"]):
        dataset = SegmentationDataset(config(shards, targets=targets), 32)
        for epoch in range(3):
            assert sorted(dataset.order(epoch)) == list(range(11))


def test_one_mask_an_image_is_balanced_too(make_shards, organs):
    dataset = SegmentationDataset(config(unbalanced(make_shards, organs), masks_per_image=1), 32)
    targets = []
    for epoch in range(4):
        for place, index in enumerate(dataset.order(epoch)):
            sample = dataset[int(index), 30 * epoch + place]
            assert len(sample.targets) == len(sample.masks) == 1
            targets += sample.targets.tolist()
    assert 0.4 < np.mean(targets) < 0.6  # target 1 is in a tenth of the images


def test_without_augmentation_samples_are_the_resized_images(make_shards, organs):
    stored = organs(0)
    dataset = SegmentationDataset(config(make_shards([stored], LABELS)), 32)
    sample = dataset[0]
    resize = Resize((50, 70), 32)
    valid = resize.valid()
    assert torch.equal(sample.valid, valid) and not valid.all()
    assert sample.targets.tolist() == [0, 1, 2]
    for mask, values in zip(sample.masks, LABELS.values(), strict=True):
        assert np.array_equal(mask, resize.mask(np.isin(stored.mask, values)))
    expected = resize.image(as_pixels(stored.image))
    assert sample.image.shape == (1, 32, 32) and sample.image.dtype == torch.uint8
    assert torch.equal(sample.image[:, valid], expected[:, valid])


def test_a_sample_depends_on_seed_index_and_draw_alone(make_shards, organs):
    shards = make_shards([organs(seed) for seed in range(6)], LABELS)
    options = config(shards, augmentation=Augmentation(), masks_per_image=2)

    def batches(samples_seen: int, number: int, workers: int, seed: int = 3) -> list:
        dataset = SegmentationDataset(options, 32, seed)
        loader = build_loader(
            dataset, 2, workers=workers, samples_seen=samples_seen, collate=collate
        )
        stream = iter(loader)
        return [next(stream) for _ in range(number)]

    whole = batches(0, 6, workers=0)
    for resumed, workers in ((8, 0), (4, 1)):
        rest = batches(resumed, 6 - resumed // 2, workers)
        for one, other in zip(whole[resumed // 2 :], rest, strict=True):
            assert one.keys == other.keys
            for name in ("images", "valid", "masks", "image", "targets"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
    dataset = SegmentationDataset(options, 32, 3)
    assert not torch.equal(dataset[0, 1].image, dataset[0, 2].image)
    other_seed = SegmentationDataset(options, 32, 4)
    assert not torch.equal(dataset[0, 1].image, other_seed[0, 1].image)


def test_collate_says_which_image_a_mask_belongs_to(make_shards, organs):
    samples = [organs(0), organs(1), organs(2)]
    samples[1].mask[samples[1].mask == 2] = 0
    dataset = SegmentationDataset(config(make_shards(samples, {"a": [1], "b": [2]})), 32)
    items = [dataset[index] for index in range(3)]
    batch = collate(items)
    assert batch.images.shape == (3, 1, 32, 32) and batch.valid.shape == (3, 32, 32)
    counts = [len(item.masks) for item in items]
    assert sorted(counts) == [1, 2, 2]
    assert batch.image.tolist() == [n for n, count in enumerate(counts) for _ in range(count)]
    for place, image in enumerate(batch.image.tolist()):
        index = place - batch.image.tolist().index(image)
        assert torch.equal(batch.masks[place], items[image].masks[index])
        assert batch.targets[place] == items[image].targets[index]
    assert batch.keys == [item.key for item in items]


def test_image_and_mask_move_together(make_shards):
    mask = np.zeros((60, 90), np.uint8)
    mask[15:40, 20:50] = 1
    mask[20:30, 50:70] = 1
    shards = make_shards([Sample(mask * 255, mask, group="p")], {"shape": [1]})
    strong = Augmentation(60, 0.3, 0.1, 0.5, 0, 0, 0)
    dataset = SegmentationDataset(config(shards, augmentation=strong), 96)
    still = SegmentationDataset(config(shards), 96)[0].masks[0]
    overlaps = []
    for draw in range(20):
        sample = dataset[0, draw]
        bright = (sample.image[0] > 127) & sample.valid
        assert (bright ^ sample.masks[0]).sum() <= 0.05 * sample.masks[0].sum()
        overlaps.append(float((still & sample.masks[0]).sum() / still.sum()))
    assert min(overlaps) < 0.6  # it did move


def test_warp_turns_shifts_and_scales_exactly():
    values = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([[1.0, 0, 2], [0, 1, -3]])  # output (x, y) shows input (x + 2, y - 3)
    moved = warp(values, shift, "nearest")
    expected = torch.zeros_like(values)
    expected[:, 3:, :6] = values[:, :5, 2:]
    assert torch.equal(moved, expected)
    assert torch.allclose(warp(values, shift, "bilinear")[:, 0, 7], values[:, 0, 7])  # the edge
    larger = warp(values, torch.eye(2, 3), "nearest", size=11)
    assert torch.equal(larger[:, :8, :8], values) and not larger[:, 8:].any()
    quarter = torch.tensor([[0.0, 1, 0], [-1, 0, 7]])  # output (x, y) shows input (y, 7 - x)
    for mode in ("nearest", "bilinear"):
        turned = warp(values, quarter, mode)
        assert torch.allclose(turned, torch.rot90(values, -1, (1, 2)), atol=1e-5)
    between = warp(values, torch.tensor([[1.0, 0, 0.5], [0, 1, 0]]), "bilinear")
    expected = (values[..., :-1] + values[..., 1:]) / 2
    assert torch.allclose(between[..., :-1], expected, atol=1e-5)


def test_random_affine_keeps_to_its_bounds_about_the_centre():
    strength = Augmentation(rotation=30, scale=0.2, translation=0.1, flip=0.5)
    rng = np.random.default_rng(0)
    centre = torch.tensor([(40 - 1) / 2, (20 - 1) / 2, 1.0])
    angles, factors, shifts, mirrored = [], [], [], 0
    for _ in range(300):
        matrix = random_affine(strength, (20, 40), rng)
        linear = matrix[:, :2].double()
        determinant = float(torch.linalg.det(linear))
        mirrored += determinant < 0
        if determinant < 0:
            linear = torch.diag(torch.tensor([-1.0, 1.0])).double() @ linear
        factor = abs(determinant) ** -0.5
        assert torch.allclose(linear @ linear.T * factor**2, torch.eye(2).double(), atol=1e-5)
        factors.append(factor)
        angles.append(np.degrees(np.arctan2(linear[0, 1], linear[0, 0])))
        # The input's centre is shown at centre + shift: solve for it.
        shown = torch.linalg.solve(matrix[:, :2], centre[:2] - matrix[:, 2])
        shifts.append((shown - centre[:2]).abs().max().item())
    assert 25 < max(angles) <= 30.001 and -30.001 <= min(angles) < -25
    assert 1.15 < max(factors) <= 1.2001 and 1 / 1.2001 <= min(factors) < 1 / 1.15
    assert 3.5 < max(shifts) <= 4.001
    assert 100 < mirrored < 200


def test_intensity_changes_stay_in_range(organs):
    resize = Resize((50, 70), 64)
    framed, valid = resize.image(as_pixels(organs(0).image)).float(), resize.valid()
    grey = framed / 255
    brighter = Augmentation(0, 0, 0, 0, gamma=0, contrast=0, brightness=0.2)
    shifts = []
    for seed in range(20):
        new = change_intensity(framed, valid, brighter, np.random.default_rng(seed)) / 255
        assert new.min() >= 0 and new.max() <= 1
        inside = valid & (grey[0] > 0.2) & (grey[0] < 0.8)
        shift = (new - grey)[:, inside]
        assert shift.std() < 1e-5
        shifts.append(shift.mean().item())
    assert max(shifts) > 0.1 and min(shifts) < -0.1 and max(np.abs(shifts)) <= 0.2
    gamma = Augmentation(0, 0, 0, 0, gamma=0.5, contrast=0, brightness=0)
    changed = change_intensity(framed, valid, gamma, np.random.default_rng(0)) / 255
    exponent = np.log(changed[:, valid]) / np.log(grey[:, valid])
    finite = exponent[torch.isfinite(exponent) & (grey[:, valid] < 0.9)]
    assert finite.std() < 1e-3 and abs(np.log(finite.mean())) <= 0.5 and finite.mean() != 1


def test_beyond_the_image_its_edge_goes_on(make_shards):
    """No other colour is mixed into the outermost pixels of an image that is moved."""
    label = np.zeros((40, 24), np.uint8)
    label[10:30, 5:20] = 1
    shards = make_shards([Sample(np.full((40, 24), 200, np.uint8), label, group="p")], {"a": [1]})
    strong = Augmentation(60, 0.3, 0.2, 0.5, 0, 0, 0)
    dataset = SegmentationDataset(config(shards, augmentation=strong), 64)
    for draw in range(10):
        sample = dataset[0, draw]
        assert not sample.valid.all() and (sample.image[0, sample.valid] == 200).all()


def test_samples_keep_channels_and_bits(make_shards, organs):
    """Grey in one channel and 8 bits in 8 bits up to the device, as in stage one."""
    grey, wide, colour = organs(0), organs(1), organs(2)
    wide.image = wide.image.astype(np.uint16) * 257
    colour.image = np.dstack([colour.image] * 3)
    shards = make_shards([grey, wide, colour], LABELS)
    dataset = SegmentationDataset(config(shards, augmentation=Augmentation()), 32)
    kinds = {
        dataset.cases.shards.record(index).image.ndim * 100
        + dataset.cases.shards.record(index).image.itemsize: dataset[index].image
        for index in range(3)
    }
    assert kinds[201].shape == (1, 32, 32) and kinds[201].dtype == torch.uint8
    assert kinds[202].shape == (1, 32, 32) and kinds[202].dtype == torch.float32
    assert kinds[301].shape == (3, 32, 32) and kinds[301].dtype == torch.uint8
    assert (kinds[202].min(), kinds[202].max()) >= (0, 0) and kinds[202].max() <= 255


def test_targets_that_leave_the_frame_are_left_out_and_never_all(make_shards):
    label = np.zeros((40, 40), np.uint8)
    label[:4, :4], label[36:, 36:] = 1, 2
    shards = make_shards([Sample(label, label, group="p")], {"a": [1], "b": [2]})
    far = Augmentation(0, 0, 1.5, 0, 0, 0, 0)
    dataset = SegmentationDataset(config(shards, augmentation=far), 32)
    seen = {tuple(dataset[0, draw].targets.tolist()) for draw in range(60)}
    assert seen == {(0,), (1,), (0, 1)}
    for draw in range(60):
        sample = dataset[0, draw]
        assert sample.masks.flatten(1).any(1).all()
        assert len(sample.masks) == len(sample.targets)


@pytest.mark.parametrize("place", [(0, 0), (999, 799), (999, 0), (501, 333)])
def test_a_target_of_one_pixel_survives_the_resizing(make_shards, place):
    label = np.zeros((1000, 800), np.uint8)
    label[place] = 1
    shards = make_shards([Sample(label, label, group="p")], {"dot": [1]})
    mask = SegmentationDataset(config(shards), 32)[0].masks[0]
    (row, column) = np.argwhere(mask.numpy())[0]
    assert mask.sum() == 1
    assert abs(row - place[0] * 0.032) <= 1 and abs(column - place[1] * 0.032) <= 1


def test_augmentation_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"augmentation\.rotation is -1"):
        Augmentation(rotation=-1)
    with pytest.raises(UserError, match=r"augmentation\.flip is above 1"):
        Augmentation(flip=1.5)
