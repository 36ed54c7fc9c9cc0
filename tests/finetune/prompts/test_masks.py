"""Rough masks, and masks as logits."""

import numpy as np
import pytest
import torch

from finetune.inference.prompted import PromptedImage
from finetune.model.prompt_encoder import mask_logits
from finetune.prompts.masks import rough_mask, signed_distance


def disc(side: int, centre: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:side, :side]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def test_a_rough_mask_is_near_the_truth_in_proportion_to_its_size() -> None:
    for side, radius in ((60, 8), (240, 32)):
        truth = disc(side, (side / 3, side / 2), radius)
        found = {}
        for amount in (0.0, 0.1, 0.3):
            masks = [rough_mask(truth, np.random.default_rng(seed), amount) for seed in range(60)]
            ious = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
            areas = [mask.sum() / truth.sum() for mask in masks]
            found[amount] = float(np.mean(ious))
            assert min(ious) >= (1 - 4 * amount if amount < 0.3 else 0.1)
            if amount:
                assert min(areas) < 1 - amount / 2 and max(areas) > 1 + amount / 2
                assert len({mask.tobytes() for mask in masks}) == 60
        assert found[0.0] == 1 and 0.75 < found[0.1] < 0.95 and 0.4 < found[0.3] < 0.8
        again = rough_mask(truth, np.random.default_rng(5), 0.3)
        assert np.array_equal(again, rough_mask(truth, np.random.default_rng(5), 0.3))


def test_nothing_stays_nothing_and_something_something() -> None:
    rng = np.random.default_rng(0)
    assert not rough_mask(np.zeros((9, 7), bool), rng).any()
    dot = np.zeros((9, 7), bool)
    dot[8, 0] = True
    for mask in (dot, ~dot, np.ones((9, 7), bool)):
        for seed in range(20):
            rough = rough_mask(mask, np.random.default_rng(seed), 1.0)
            assert rough.shape == mask.shape and rough.any()


@pytest.mark.parametrize("seed", range(3))
def test_distances_to_the_edge(seed: int) -> None:
    mask = np.random.default_rng(seed).random((11, 13)) < 0.3
    rows, columns = np.indices(mask.shape)
    found = signed_distance(mask)
    for (row, column), inside in np.ndenumerate(mask):
        other = mask != inside
        nearest = np.sqrt(((rows - row) ** 2 + (columns - column) ** 2)[other].min())
        expected = (nearest - 0.5) * (1 if inside else -1)
        assert found[row, column] == pytest.approx(expected, abs=1e-5)


def test_a_mask_prompt_is_the_log_odds_of_what_is_covered(discs) -> None:
    masks = np.random.default_rng(0).random((3, 64, 64)) < 0.3
    masks[1], masks[2] = False, True
    logits = mask_logits(torch.from_numpy(masks).float())
    assert logits.shape == (3, 1, 16, 16) and logits.dtype == torch.float32
    for row, column in np.ndindex(16, 16):
        share = masks[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()
        share = min(max(share, 0.001), 0.999)
        odds = np.log(share / (1 - share))
        assert float(logits[0, 0, row, column]) == pytest.approx(odds, abs=1e-4)
    sure = float(np.log(0.999 / 0.001))
    assert logits[1].unique().tolist() == pytest.approx([-sure], abs=1e-4)
    assert logits[2].unique().tolist() == pytest.approx([sure], abs=1e-4)
    prompted = PromptedImage(discs, np.zeros((64, 64), np.uint8))
    assert torch.equal(prompted.mask_prompts(masks), logits)  # in use as in training
