"""What a decoder without prompts finds where nothing is lowers its score."""

import numpy as np
import pytest
import torch

from data_prep.records import Sample
from finetune.config import CaseSelection
from finetune.data.cases import LabelledCases
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.pooled import count_pixels, pooled_scores
from finetune.evaluation.protocols import TargetOnly
from finetune.inference.prompted import PromptedImage


class Bright(PromptedImage):
    """Finds what is bright, whatever is asked for, and is not an image of a segmenter."""

    def __init__(self, segmenter, image, embedding=None):
        self.image, self.embedding = image, np.zeros(1)

    def predict(self, *_, targets):
        return np.stack([self.image > 127] * len(targets)), torch.zeros(len(targets), 1, 1, 1)


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """Volumes and labelled images are seen as they are."""

    def around(segmenter, read, depth, count):
        return {depth: Bright(segmenter, read(depth))}

    monkeypatch.setattr("finetune.inference.volume.encode_around", around)
    monkeypatch.setattr(
        "finetune.evaluation.pooled.encode_labelled",
        lambda segmenter, cases, image, pixels: Bright(segmenter, pixels),
    )


def volume(seed: int, ghost: bool) -> Sample:
    """A bright cube in the middle slices and, as a ghost, in a slice that holds no target."""
    mask = np.zeros((6, 20, 20), np.uint8)
    mask[2:4, 4:12, 4:12] = 1
    image = mask * 200
    image[5, 4:12, 4:12] = 200 * ghost
    return Sample(image, mask, group=f"{seed}", volume=True)


def cases_of(make_shards, samples, labels, name) -> LabelledCases:
    return LabelledCases(CaseSelection(shards=make_shards(samples, labels, name)))


def scored(cases: LabelledCases) -> dict[str, list[float]]:
    images = cases.images + cases.empty
    found = [counted for image in images for counted in count_pixels(None, cases, image)]
    return pooled_scores(cases, found)


def test_a_false_positive_in_a_slice_without_target_lowers_the_score(make_shards):
    for ghost, expected in ((False, 1.0), (True, 0.8)):
        cases = cases_of(make_shards, [volume(0, ghost)], {"liver": [1]}, f"{ghost}")
        (row,) = evaluate(torch.nn.Linear(1, 1), cases, [TargetOnly()])
        assert (row.protocol, row.prompts) == ("no prompt", 0)
        assert row.dice == pytest.approx(expected)  # 2 * 2 / (2 + 3) of the cube's slices
        assert scored(cases) == {"no prompt": [pytest.approx(expected)]}


def test_scores_of_all_slices_are_those_of_whole_cases(make_shards, organs):
    samples = [organs(seed, (50, 70), depth) for seed, depth in enumerate((6, 5, 7))]
    cases = cases_of(make_shards, samples, {"both": [1, 2], "tumour": [2]}, "set")
    rows = evaluate(torch.nn.Linear(1, 1), cases, [TargetOnly()])
    expected = [row.dice for row in rows]
    assert len(rows) == 6 and 0.1 < min(expected) < max(expected) < 1
    assert sorted(scored(cases)["no prompt"]) == pytest.approx(sorted(expected))


def test_absent_targets_are_asked_for_in_pictures_too(make_shards):
    """A picture that holds nothing is judged; what is found of an absent target counts as wrong."""
    there = np.zeros((20, 20), np.uint8)
    there[5:9, 5:9] = 1
    nothing = np.zeros_like(there)
    pictures = [(there, there), (there, nothing), (nothing, nothing)]  # seen, and true
    samples = [Sample(seen * 200, true, group=f"{n}") for n, (seen, true) in enumerate(pictures)]
    cases = cases_of(make_shards, samples, {"liver": [1], "tumour": [2]}, "set")
    rows = evaluate(torch.nn.Linear(1, 1), cases, [TargetOnly()])
    found = [(row.protocol, row.target, row.dice) for row in rows]
    absent = "no prompt, absent"
    assert sorted(found) == [
        ("no prompt", "liver", 1.0),
        (absent, "liver", 0.0),
        (absent, "liver", 1.0),
        (absent, "tumour", 0.0),
        (absent, "tumour", 0.0),
        (absent, "tumour", 1.0),
    ]
    scores = scored(cases)
    assert scores["no prompt"] == [1.0] and sorted(scores[absent]) == [0, 0, 0, 1, 1]
    rows = evaluate(torch.nn.Linear(1, 1), cases, [TargetOnly(absent=False)])
    assert [row.protocol for row in rows] == ["no prompt"]
