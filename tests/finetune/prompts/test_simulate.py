"""Prompts of a training step stay on the image: padding has no loss, so no click helps there."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.data.dataset import SegmentationSample
from finetune.prompts.clicks import random_clicks
from finetune.prompts.prompting import Round
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.stage import SegmentationStage
from helpers.steps import SIZE, Everything, batch_of, padded_discs


@pytest.mark.parametrize("box_share", [0.0, 1.0])
def test_no_training_click_falls_on_padding(box_share: float) -> None:
    masks, valid = padded_discs()
    prompting = ClicksAndBoxes(box_share=box_share, rounds=4, previous_mask=False)
    corrections = 0
    for seed in range(6):
        segmenter = Everything()
        rng = np.random.default_rng(seed)
        rounds = prompting.predictions(segmenter, torch.zeros(2, 1), batch_of(masks, valid), rng)
        assert len(list(rounds)) == 5
        for prompts in segmenter.asked:
            if prompts.points is None:
                continue
            for mask, points, labels in zip(
                range(2), prompts.points.long(), prompts.labels, strict=True
            ):
                x, y = points[labels >= 0].T
                assert valid[mask, y, x].all()
                assert torch.equal(masks[mask, y, x].long(), labels[labels >= 0])
        last = segmenter.asked[-1].labels
        corrections += int((last == 0).sum())
    assert corrections >= 6 * 2 * 4  # each round a negative click for each mask


def test_skipped_rounds_add_clicks_and_have_no_gradient() -> None:
    prompting = ClicksAndBoxes(box_share=0.0, rounds=1, skipped_rounds=3)
    numbers = set()
    for seed in range(20):
        segmenter, rounds = rounds_of_a_step(prompting, seed)
        skipped = len(rounds) - 2
        numbers.add(skipped)
        assert [each.trained for each in rounds] == [False] * skipped + [True] * 2
        assert [each.decoded.low_res.requires_grad for each in rounds] == [
            each.trained for each in rounds
        ]
        clicks = [int((prompts.labels[0] >= 0).sum()) for prompts in segmenter.asked]
        assert clicks == list(range(clicks[0], clicks[0] + len(rounds)))
    assert numbers == {0, 1, 2, 3}


def rounds_of_a_step(prompting: ClicksAndBoxes, seed: int) -> tuple[Everything, list[Round]]:
    masks, valid = padded_discs()
    segmenter = Everything()
    embeddings = torch.zeros(2, 1, requires_grad=True)
    rng = np.random.default_rng(seed)
    rounds = prompting.predictions(segmenter, embeddings, batch_of(masks, valid), rng)
    return segmenter, list(rounds)


def test_a_box_is_trained_on_before_any_click() -> None:
    prompting = ClicksAndBoxes(box_share=1.0, rounds=1, skipped_rounds=3)
    for seed in range(8):
        segmenter, rounds = rounds_of_a_step(prompting, seed)
        assert [each.trained for each in rounds] == [True, True]
        assert segmenter.asked[0].boxes is not None and segmenter.asked[0].labels is None


@pytest.mark.parametrize("box_share", [0.0, 1.0])
def test_an_ambiguous_first_prompt_has_three_masks_and_the_expected_one_goes_on(box_share) -> None:
    single = ClicksAndBoxes(box_share=box_share, single_share=1.0, rounds=2)
    masks, _ = padded_discs()
    for seed in range(5):
        segmenter, rounds = rounds_of_a_step(single, seed)
        assert segmenter.multimask == [True, False, False]
        assert [each.decoded.low_res.shape[1] for each in rounds] == [3, 1, 1]
        first, second, _ = segmenter.asked
        assert (first.boxes is not None) == (box_share == 1)
        if first.points is not None:  # one click each, on the object
            assert torch.equal(first.labels, torch.ones(2, 1))
            x, y = first.points[:, 0].long().T
            assert masks[[0, 1], y, x].all()
        assert torch.equal(second.masks, torch.ones(2, 1, SIZE // 4, SIZE // 4))
        assert second.labels[:, -1].eq(0).all()  # everywhere is too much
    segmenter, _ = rounds_of_a_step(replace(single, multimask=False), 0)
    assert segmenter.multimask == [False] * 3


def test_a_share_of_the_steps_with_clicks_starts_from_one() -> None:
    prompting = ClicksAndBoxes(box_share=0.0, single_share=0.5, rounds=0)
    several = 0
    for seed in range(40):
        segmenter, _ = rounds_of_a_step(prompting, seed)
        (prompts,), (multimask,) = segmenter.asked, segmenter.multimask
        alone = prompts.labels.shape[1] == 1
        assert alone or not multimask  # several clicks are not ambiguous
        several += not multimask
    assert 10 < several < 30


def test_negative_clicks_are_drawn_from_the_valid_pixels_only() -> None:
    masks, valid = (tensor.numpy() for tensor in padded_discs())
    beyond = 0
    for seed in range(40):
        for mask, area in zip(masks, valid, strict=True):
            for target in (mask, np.zeros_like(mask)):
                (x, y), labels = _drawn(target, seed, area)
                assert area[y, x].all()
                assert np.array_equal(target[y, x], labels == 1)
                (x, y), _ = _drawn(target, seed, None)
                beyond += int((~area[y, x]).sum())
    assert beyond > 0  # without `valid` some fall on padding


def _drawn(target, seed, area):
    points, labels = random_clicks(target, np.random.default_rng(seed), valid=area)
    return points.T, labels


def test_the_loader_prepares_first_prompts_that_depend_on_the_draw_alone() -> None:
    masks, valid = padded_discs()
    image, targets = (
        torch.zeros(1, SIZE, SIZE, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
    )
    dataset = SimpleNamespace(seed=3)
    stage = SimpleNamespace(dataset=dataset, prompting=ClicksAndBoxes(), cache=None)

    def prepared(draw: int) -> tuple:
        samples = [
            SegmentationSample(f"{n}", image, valid[n], masks[n][None], targets, draw + n)
            for n in range(2)
        ]
        first = SegmentationStage.collate(stage, samples).first
        again = pickle.loads(pickle.dumps(first))  # noqa: S301, as a worker hands it over
        places = [[points.tolist(), labels.tolist()] for points, labels in again.clicks]
        return places, None if again.boxes is None else again.boxes.tolist(), again.single

    found = {draw: prepared(draw) for draw in range(0, 40, 2)}
    assert all(prepared(draw) == first for draw, first in found.items())
    kinds = [
        ("box" if boxes else "one click" if one else "clicks") for _, boxes, one in found.values()
    ]
    assert {kinds.count(kind) > 2 for kind in ("box", "one click", "clicks")} == {True}
