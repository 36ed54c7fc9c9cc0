"""Prompts in one slice of a stack, carried to its neighbours in training as they are in use."""

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.data.dataset import SegmentationSample, SegmentationStack, collate
from finetune.inference.volume import PromptedVolume, propagate
from finetune.model.decoder import Decoded
from finetune.model.losses import SegmentationLoss, dice_loss
from finetune.model.prompt_encoder import Prompts
from finetune.prompts.boxes import box_of
from finetune.prompts.carried import Carried, objects_of
from finetune.prompts.prompting import Round
from finetune.prompts.simulate import ClicksAndBoxes

SIZE = 64


class Bright(nn.Module):
    """Stands in for a segmenter: what is bright in and around the box, and what was found before.

    It answers at the size of the image, so that nothing is blurred.
    """

    image_size, previous_mask, multimask, stack = SIZE, True, False, 1

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.asked: list[Prompts] = []
        self.several: list[bool] = []

    def encode(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        return images.mean(1)

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        self.asked.append(prompts)
        self.several.append(multimask)
        rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        found = []
        for place, image in enumerate(prompts.image.tolist()):
            x0, y0, x1, y1 = prompts.boxes[place]
            inside = (columns >= x0 - 2) & (columns < x1 + 2) & (rows >= y0 - 2) & (rows < y1 + 2)
            logits = torch.where(inside & (embeddings[image] > 0), 1.0, -1.0)
            if prompts.masks is not None:
                logits = logits + 0.1 * prompts.masks[place, 0].clamp(-1, 1)
            found.append(logits + self.anchor)
        low_res = torch.stack(found)[:, None]
        return Decoded(low_res.repeat(1, 3 if multimask else 1, 1, 1), torch.zeros(len(found), 1))

    def upsample(self, low_res: Tensor) -> Tensor:
        return low_res


def tube(ends: tuple[int, int], depth: int, column: int = 20) -> np.ndarray:
    """(depth, S, S) bool: a square that wanders through the slices from `ends[0]` to `ends[1]`."""
    found = np.zeros((depth, SIZE, SIZE), bool)
    for place in range(*ends):
        found[place, 10 + place : 26 + place, column : column + 16] = True
    return found


def stack_of(*objects: np.ndarray, bright: np.ndarray | None = None) -> SegmentationStack:
    """A stack with these objects (D, S, S), targets 0, 1, ...; bright where they are."""
    shown = np.any(objects, axis=0) if bright is None else bright
    slices = []
    for place, image in enumerate(shown):
        held = [target for target, each in enumerate(objects) if each[place].any()]
        masks = torch.from_numpy(np.array([objects[n][place] for n in held], bool))
        valid = torch.ones(SIZE, SIZE, dtype=torch.bool)
        pixels = torch.from_numpy(image[None] * np.uint8(200))
        masks = masks.reshape(-1, SIZE, SIZE)
        targets = torch.tensor(held, dtype=torch.int64)
        slices.append(SegmentationSample("key", pixels, valid, masks, targets))
    return SegmentationStack(slices)


def rounds_of(prompting: Carried, *stacks: SegmentationStack, seed: int = 0):
    """The rounds of a step, the stand-in that was prompted, and where each object was prompted."""
    batch = collate(stacks)
    embeddings = batch.images.float().mean(1)
    segmenter, rng = Bright(), np.random.default_rng(seed)
    start = pickle.loads(pickle.dumps(prompting.prepare(batch, rng)))  # noqa: S301, a worker does
    batch.first = start
    return list(prompting.predictions(segmenter, embeddings, batch, rng)), segmenter, start.chosen


BOX = Carried(box_share=1.0, box_jitter=0.0, rounds=0, multimask=False)


@pytest.mark.parametrize("previous", [True, False])
def test_masks_are_carried_as_in_use(previous: bool) -> None:
    truth = tube((1, 5), 7)
    bright = truth.copy()
    bright[5] = np.roll(truth[4], 8, axis=1)  # what the stand-in takes for the object
    for seed in range(6):
        prompting = Carried(
            box_share=1.0, box_jitter=0.0, rounds=0, multimask=False, previous_mask=previous
        )
        rounds, trained, (start,) = rounds_of(prompting, stack_of(truth, bright=bright), seed=seed)
        used = Bright()
        used.previous_mask = previous
        pixels = (bright * np.uint8(200)).astype(np.uint8)
        volume = PromptedVolume(used, 7, pixels.__getitem__)
        masks, logits = volume[start].predict(boxes=box_of(truth[start])[None])
        expected = propagate(volume, start, masks[0], logits)
        found = np.zeros_like(truth)
        for decoded, _, asked in rounds:
            for low_res, image in zip(decoded.low_res[:, 0], asked.image.tolist(), strict=True):
                found[image] = low_res > 0
        assert np.array_equal(found, expected) and expected[5].any()
        # prompt by prompt the same, whatever the order
        given = {image: one for one in trained.asked for image in one.image.tolist()}
        for depth, one in zip(order_of(start, 7), used.asked, strict=True):
            row = given[depth].image.tolist().index(depth)
            assert torch.equal(given[depth].boxes[row], one.boxes[0])
            if given[depth].masks is not None:
                assert torch.equal(given[depth].masks[row], one.masks[0])
            assert (given[depth].masks is None) == (one.masks is None)


def order_of(start: int, depth: int) -> list[int]:
    """Slices that `propagate` comes to: up to the end of the tube, then down to its beginning."""
    return [start, *range(start + 1, depth), *range(start - 1, -1, -1)]


def test_the_truth_is_that_of_each_slice_and_empty_where_the_object_has_ended() -> None:
    long, short = tube((0, 5), 5), tube((1, 3), 5, column=44)
    for seed in range(8):
        rounds, segmenter, chosen = rounds_of(BOX, stack_of(long, short), seed=seed)
        seen = [set(), set()]
        for step, (decoded, trained, truth) in enumerate(rounds):
            assert trained and decoded.low_res.requires_grad
            for mask, image in zip(truth.masks.numpy(), truth.image.tolist(), strict=True):
                number = 0 if mask[:, 20].any() else 1
                assert np.array_equal(mask, (long, short)[number][image])
                assert abs(image - chosen[number]) == step
                seen[number].add(image)
        # the first slice without the object is asked for, and none beyond it
        assert seen == [{0, 1, 2, 3, 4}, {0, 1, 2, 3}]
        assert segmenter.several == [False] * len(rounds)


def test_prompts_in_the_first_slice_are_those_of_clicks_and_boxes() -> None:
    truth = tube((0, 3), 3)
    options = {"box_share": 1.0, "rounds": 0, "previous_mask": False}
    rounds, segmenter, (start,) = rounds_of(Carried(**options), stack_of(truth))
    assert segmenter.several == [True] * len(rounds)  # a box alone may mean several objects
    assert all(decoded.low_res.shape[1] == 3 for decoded, _, _ in rounds)
    batch = collate([SegmentationStack([stack_of(truth).slices[start]])])
    batch.images = batch.images.repeat(3, 1, 1, 1)
    alone, rng = Bright(), np.random.default_rng(0)
    rng.integers(3)  # the choice of the slice
    first = next(ClicksAndBoxes(**options).predictions(alone, batch.images[:, 0], batch, rng))
    assert torch.equal(alone.asked[0].boxes, segmenter.asked[0].boxes)
    assert first.truth is None


def test_stacks_are_apart_and_every_slice_may_be_prompted() -> None:
    one, other = tube((0, 3), 3), tube((0, 2), 4, column=4)
    starts = set()
    for seed in range(20):
        rounds, _, chosen = rounds_of(BOX, stack_of(one), stack_of(other), seed=seed)
        starts |= set(chosen)
        asked = [image for _, _, truth in rounds for image in truth.image.tolist()]
        assert sorted(asked) == [0, 1, 2, 3, 4, 5]  # the last slice is beyond the object's end
    assert starts == {0, 1, 2, 3, 4}
    objects = objects_of(collate([stack_of(one), stack_of(other)]))
    assert [each.stack for each in objects] == [range(3), range(3, 7)]
    assert [list(each.masks) for each in objects] == [[0, 1, 2], [3, 4]]


def test_a_mask_that_has_lost_its_object_is_carried_no_further() -> None:
    truth = tube((0, 4), 4)
    elsewhere = np.roll(truth, 14, axis=2)  # what is found overlaps by an eighth
    for lost, carried in ((0.2, False), (0.0, True)):
        prompting = Carried(box_share=1.0, box_jitter=0.0, rounds=0, multimask=False, lost=lost)
        rounds, _, _ = rounds_of(prompting, stack_of(truth, bright=elsewhere))
        assert (len(rounds) > 1) == carried
    with pytest.raises(UserError, match=r"prompts\.lost is 1\.5"):
        Carried(lost=1.5)


def test_without_neighbours_there_are_the_first_rounds_alone() -> None:
    picture = stack_of(tube((0, 1), 1)).slices[0]
    batch = collate([picture])
    rounds = list(
        Carried(rounds=0, box_share=1.0, multimask=False).predictions(
            Bright(), batch.images[:, 0].float(), batch, np.random.default_rng(0)
        )
    )
    assert len(rounds) == 1 and isinstance(rounds[0], Round)


@pytest.mark.parametrize(
    "loss", [SegmentationLoss(), SegmentationLoss(bce=0.0, focal=20.0), SegmentationLoss(bce=0.0)]
)
def test_a_loss_with_an_empty_truth_empties_the_mask(loss: SegmentationLoss) -> None:
    logits = torch.full((1, 1, 32, 32), -3.0)
    logits[..., 8:20, 8:20] = 3.0
    logits.requires_grad_()
    estimate = torch.zeros(1, 1, requires_grad=True)
    empty = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    optimizer = torch.optim.Adam([logits, estimate], lr=0.1)
    before = loss(logits, empty, None, estimate)[0].item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(logits, empty, None, estimate)[0].backward()
        optimizer.step()
    assert loss(logits, empty, None, estimate)[0].item() < before
    assert not (logits > 0).any()
    assert estimate.item() > 0.8  # an empty mask is what was asked for


def test_a_mask_that_should_be_empty_is_pushed_about_as_hard_as_one_that_should_be_there() -> None:
    """Whatever its size: plain soft Dice is a thousand times flatter where nothing should be."""
    for side in (10, 40, 100):
        logits = torch.full((1, 1, 224, 224), -6.0)
        logits[..., :side, :side] = 0.0
        gradients = []
        for there in (False, True):
            truth = torch.zeros(1, 1, 224, 224, dtype=torch.bool)
            truth[..., :side, :side] = there
            given = logits.clone().requires_grad_()
            dice_loss(given, truth).backward()
            gradients.append(given.grad[..., :side, :side].abs().mean())
        assert 1 / 20 < gradients[0] / gradients[1] < 1
