"""Volumes are scored by what a user can do, and rows say what was done."""

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from data_prep.records import Sample
from finetune.config import CaseSelection
from finetune.data.cases import LabelledCases
from finetune.evaluation import drawing, metrics
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.protocols import Box, Clicks, Propagated, Protocol, TargetOnly
from finetune.evaluation.volume_pictures import draw_volume
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.volume import PromptedVolume, propagate
from finetune.model.decoder import Decoded
from finetune.prompts.boxes import box_of

LABELS = {"liver": [1], "tumour": [2]}


class Bright(torch.nn.Module):
    """Stands in for a segmenter: what is bright in the box, or near a click; else nothing."""

    image_size, stack, previous_mask, multimask = 64, 1, True, False

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.encoded = 0

    def encode(self, images):
        self.encoded += 1
        return images.mean(1)

    def decode(self, embeddings, prompts, multimask=False):
        rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        if prompts.boxes is not None:
            x0, y0, x1, y1 = prompts.boxes[0]
            inside = (columns >= x0 - 2) & (columns <= x1 + 2) & (rows >= y0 - 2) & (rows <= y1 + 2)
        else:
            x, y = prompts.points[0, 0]
            inside = (columns - x) ** 2 + (rows - y) ** 2 < 400
        logits = torch.where(inside & (embeddings[0] > 0), 1.0, -1.0)
        return Decoded(logits[None, None], None)  # as large as the image: nothing is blurred


def tube(ends: tuple[int, int], depth: int = 9) -> Sample:
    """A bright square that wanders through the slices from `ends[0]` to before `ends[1]`."""
    image, mask = np.zeros((2, depth, 64, 64), np.uint8)
    for number in range(*ends):
        place = (number, slice(16 + number, 32 + number), slice(20, 36))
        image[place], mask[place] = 200, 1
    return Sample(image, mask, group="p", meta={"spacing": [2.0, 1.0, 1.0]}, volume=True)


def test_a_mask_is_carried_until_the_object_ends():
    sample, bright = tube((2, 7)), Bright()
    volume = PromptedVolume(bright, 9, sample.image.__getitem__)
    truth = sample.mask.astype(bool)
    masks, logits = volume[4].predict(boxes=box_of(truth[4])[None])
    assert np.array_equal(propagate(volume, 4, masks[0], logits), truth)
    assert bright.encoded == 7  # the first empty slice at either end is the last that is looked at
    nothing = propagate(volume, 4, np.zeros_like(masks[0]), logits)
    assert not nothing.any() and bright.encoded == 7


def test_what_is_elsewhere_in_the_next_slice_is_another_object():
    sample = tube((2, 7))
    sample.image[5:7] = np.roll(sample.image[5:7], 25, axis=2)
    volume = PromptedVolume(Bright(), 9, sample.image.__getitem__)
    masks, logits = volume[4].predict(boxes=box_of(sample.mask[4] > 0)[None])
    found = propagate(volume, 4, masks[0], logits)
    assert found.any((1, 2)).tolist() == [2 <= number < 5 for number in range(9)]


def test_embeddings_that_are_kept_are_bounded():
    bright = Bright()
    volume = PromptedVolume(bright, 9, tube((2, 7)).image.__getitem__, keep_bytes=3 * 64 * 64 * 4)
    for number in (0, 1, 2, 0, 3, 0, 2):
        assert isinstance(volume[number], PromptedImage)
    assert bright.encoded == 4  # 1 was dropped for 3
    assert volume[1] is volume[1] and bright.encoded == 5
    with pytest.raises(IndexError):
        volume[9]


def test_one_slice_is_prompted_and_named(make_shards):
    cases = LabelledCases(CaseSelection(shards=make_shards([tube((2, 7))], {"liver": [1]})))
    rows = {row.protocol: row for row in evaluate(Bright(), cases, [Propagated((1, 3)), Box()])}
    names = ["1 click in one slice", "3 clicks in one slice", "box in one slice"]
    assert list(rows) == [*names, "box per slice", "filled box per slice"]
    assert [rows[name].prompts for name in rows] == [1, 1, 1, 5, 5]  # one click left no error
    assert [row.dice for row in rows.values()] == [1.0] * 5


def test_pictures_of_volumes_show_what_was_scored(make_shards, organs, tmp_path, monkeypatch):
    mixed = make_shards([organs(0, (64, 64)), tube((2, 7)), tube((1, 5))], {"liver": [1, 2]})
    cases = LabelledCases(CaseSelection(shards=mixed))
    drawn = {}

    def draw(slices, truth, answers, title, path):
        drawn[path.name] = {name: metrics.dice(mask, truth) for name, mask in answers.items()}
        draw_volume(slices, truth, answers, title, path)
        assert path.stat().st_size > 1000

    monkeypatch.setattr(drawing, "draw_volume", draw)
    protocols = [Propagated((1,))]
    rows = evaluate(Bright(), cases, protocols)
    assert len({row.case for row in rows}) == 2
    drawing.draw_results(Bright(), cases, rows, protocols, 0, tmp_path)
    names = {"worst_volume.png", "median_volume.png", "best_volume.png"}
    assert set(drawn) == names
    assert {path.name for path in tmp_path.glob("*.png")} == names | {"dice_by_clicks.png"}
    scores = {row.protocol: row.dice for row in rows}
    assert all(found == scores for found in drawn.values())


class Everywhere(TargetOnly):
    """Predicts the upper half of each image."""

    def answers(self, prompted, truths, targets, rng):
        half = np.zeros(truths.shape[1:], bool)
        half[:32] = True
        return {"no prompt": [Answer(half) for _ in targets]}


def test_without_prompts_all_slices_are_seen(make_shards, organs):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0, (64, 64), 6)], LABELS)))
    protocol: Protocol = Everywhere()
    rows = evaluate(Bright(), cases, [protocol])
    labels = cases.shards.record(0).mask
    half = np.zeros(labels.shape, bool)
    half[:, :32] = True
    for row, values in zip(rows, LABELS.values(), strict=True):
        assert (row.protocol, row.prompts) == ("no prompt", 0)
        assert row.dice == metrics.dice(half, np.isin(labels, values))


def test_two_dimensional_records_have_no_rows_about_volumes(make_shards, organs, discs):
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0)], LABELS)))
    rows = evaluate(discs, cases, [Clicks((1,)), Propagated()])
    assert {row.protocol for row in rows} == {"1 click"}
    with pytest.raises(UserError, match=r"Propagated\.numbers"):
        Propagated((0,))
