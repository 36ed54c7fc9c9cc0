"""Evaluation by texts and by rough masks: what is asked, of which slices, and how it is scored."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.common.errors import UserError
from finetune.config import CaseSelection
from finetune.data.cases import LabelledCases
from finetune.evaluation import metrics
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.protocols import Box
from finetune.evaluation.rough import RoughMask
from finetune.evaluation.tables import summarise, summary_markdown
from finetune.evaluation.text import Text, TextThenClicks
from finetune.inference.prompted import PromptedImage
from finetune.model.decoder import Decoded
from finetune.model.prompt_encoder import Prompts
from finetune.prompts.masks import rough_mask

LABELS = {"liver": [1], "tumour": [2]}
RANGES = {"liver": (55, 115), "tumour": (115, 175)}
"""Grey values, see `organs`."""
BANK = """
templates: {train: ["{}", "the {}"], held_out: ["where is the {}"]}
targets:
  liver: {train: {names: [liver]}}
  tumour: {train: {names: [tumour]}}
"""


@pytest.fixture
def bank(tmp_path: Path) -> str:
    (tmp_path / "texts.yaml").write_text(BANK)
    return str(tmp_path / "texts.yaml")


class Reader(torch.nn.Module):
    """Finds what a text names by its brightness, in 64 x 64 images; a "where" confuses it. Clicks
    add and remove discs."""

    image_size = 64
    targets = tuple(LABELS)
    previous_mask, multimask, text_multimask, stack = True, False, False, 1

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.texts: list[str] = []

    def encode(self, images: Tensor, stacks: Sequence[int] = ()) -> Tensor:
        return images

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        grey = embeddings[0, 0] * 58.395 + 123.675
        centres = torch.arange(64)
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        found = []
        for number, text in enumerate(prompts.texts):
            self.texts.append(text)
            named = [RANGES[word] for word in RANGES if word in text]
            inside = [(grey > low) & (grey < high) for low, high in named]
            logits = torch.where(torch.stack(inside).any(0), 1.0, -1.0)
            if "where" in text:
                logits = -logits
            if prompts.points is not None:
                for point, label in zip(
                    prompts.points[number], prompts.labels[number], strict=True
                ):
                    near = (columns - point[0]) ** 2 + (rows - point[1]) ** 2 < 20
                    logits += near * (4.0 * label - 2)
            found.append(logits)
        return Decoded(torch.stack(found)[:, None], torch.zeros(len(found), 1))


def rows_of(cases: LabelledCases, protocol) -> tuple[dict, Reader]:
    reader = Reader()
    rows = evaluate(reader, cases, [protocol])
    return {(row.case, row.target, row.protocol): row for row in rows}, reader


def record_of(cases: LabelledCases) -> str:
    return cases.shards.record(0).key


def test_a_text_for_what_a_case_does_not_hold_should_have_an_empty_answer(
    make_shards, organs, bank
) -> None:
    both, liver, nothing = (organs(n, (64, 64)) for n in range(3))
    liver.mask[liver.mask == 2] = 0  # and the image still has something as bright
    nothing.mask[:], nothing.image[:] = 0, 20
    shards = make_shards([both, liver, nothing], LABELS)
    cases = LabelledCases(CaseSelection(shards=shards))
    found, reader = rows_of(cases, Text(bank=bank))
    records = sorted(
        (cases.shards.record(n) for n in range(3)), key=lambda each: -int(each.mask.max())
    )
    keys = [record.key for record in records]
    present = [(keys[0], "liver"), (keys[0], "tumour"), (keys[1], "liver")]
    absent = [(keys[1], "tumour"), (keys[2], "liver"), (keys[2], "tumour")]
    named = ("text", "text, held-out wording")
    expected = [(*pair, row) for pair in present for row in named]
    expected += [(*pair, row + ", absent") for pair in absent for row in named]
    both_named = ("text that names all", "text that names all, held-out wording")
    expected += [(keys[0], "all targets", row) for row in both_named]
    assert set(found) == set(expected)
    for pair in present:
        assert found[*pair, "text"].dice == 1
        assert found[*pair, "text, held-out wording"].dice < 0.2
    assert [found[*pair, "text, absent"].dice for pair in absent] == [0, 1, 1]
    held_out = [found[*pair, "text, held-out wording, absent"].dice for pair in absent]
    assert held_out == [0, 0, 0]  # it answers a "where" by all the rest
    assert found[keys[0], "all targets", both_named[0]].dice == 1
    assert found[keys[0], "all targets", both_named[1]].dice < 0.2
    assert all(math.isnan(found[*pair, "text, absent"].hd95) for pair in absent)
    assert {row.prompts for row in found.values()} == {1}
    assert {"where" in text for text in reader.texts} == {True, False}

    summaries = {(s.target, s.protocol): s for s in summarise(list(found.values()), list(LABELS))}
    row = summaries["tumour", "text, absent"]
    assert (row.cases, row.dice.mean, row.missed) == (2, 0.5, 0)
    table = summary_markdown(list(summaries.values()), 1.0)
    assert "`absent`: targets that a case does not hold were asked for" in table
    assert "| all targets | text that names all | 1 | 1 | 1 | 1.000 " in table
    assert "`that names all`: one text for all targets" in table
    without, _ = rows_of(cases, Text(bank=bank, absent=False, held_out=False))
    every = {(*pair, "text") for pair in present}
    assert set(without) == every | {(keys[0], "all targets", both_named[0])}
    assert len(
        evaluate(Reader(), LabelledCases(CaseSelection(shards=shards, cases=1)), [Text(bank)])
    )


def test_a_volume_has_one_text_for_all_of_its_slices(make_shards, organs, bank) -> None:
    volume = organs(0, (64, 64), 7)
    volume.image[0][:30] = 150  # beyond the tumour something like it
    cases = LabelledCases(CaseSelection(shards=make_shards([volume], LABELS)))
    found, reader = rows_of(cases, Text(bank=bank, held_out=False))
    assert len(reader.texts) == 3 * 7 and len(set(reader.texts)) == 3
    assert found[record_of(cases), "all targets", "text that names all"].prompts == 1
    record = cases.shards.record(0)
    row = found[record.key, "tumour", "text"]
    assert row.prompts == 1
    seen = (record.image > 115) & (record.image < 175)
    assert row.dice == metrics.dice(seen, record.mask == 2) < 1
    assert found[record.key, "liver", "text"].dice == 1


def test_clicks_correct_a_text(make_shards, organs, bank) -> None:
    sample = organs(0, (64, 64))
    truth = np.stack([sample.mask == 1, sample.mask == 2])
    truth[0, 50:60, 4:12] = True  # not as bright
    reader = Reader()
    prompted = PromptedImage(reader, sample.image)
    steps = prompted.click_by_click(truth, 3, ["liver", "the tumour"])
    assert [len(taken) for taken in steps] == [4, 1]  # the tumour is right by its text
    assert [answer.prompts for answer in steps[0]] == [1, 2, 3, 4]
    assert steps[0][1].labels.tolist() == [1] and truth[0][tuple(steps[0][1].points[0][::-1])]
    by_text, logits = prompted.predict(texts=["liver", "the tumour"])
    assert np.array_equal(steps[0][0].mask, by_text[0])  # later clicks do not change it
    assert torch.equal(steps[0][0].logits, logits[:1])
    dices = [metrics.dice(answer.mask, truth[0]) for answer in steps[0]]
    assert dices[0] < dices[1]
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(1, (64, 64), 5)], LABELS)))
    found, _ = rows_of(cases, TextThenClicks((1, 3), bank))
    names = ["1 click after a text per slice", "3 clicks after a text per slice"]
    assert [row for _, target, row in found if target == "liver"] == names
    assert set(TextThenClicks((1,), bank).clicks.values()) == {1}
    assert found[cases.shards.record(0).key, "liver", names[1]].prompts == 3  # texts alone did it


def test_a_rough_mask_is_given_in_the_models_frame(make_shards, organs, discs) -> None:
    asked = []
    decode = discs.decode
    discs.decode = lambda embeddings, prompts, multimask: (
        asked.append(prompts),
        decode(embeddings, prompts),
    )[1]
    cases = LabelledCases(CaseSelection(shards=make_shards([organs(0, (64, 64))], LABELS)))
    rows = {(r.target, r.protocol): r for r in evaluate(discs, cases, [RoughMask(0.3), Box()])}
    assert {row for _, row in rows} == {"rough mask", "rough mask as it is", "box", "filled box"}
    (prompts, _) = asked
    assert (
        prompts.points is None and prompts.boxes is None and prompts.masks.shape == (2, 1, 16, 16)
    )
    record = cases.shards.record(0)
    for number, name in enumerate(LABELS):
        row = rows[name, "rough mask as it is"]
        assert 0.4 < row.dice < 1 and row.prompts == 1
        truth = record.mask == number + 1
        inside = prompts.masks[number, 0].numpy() > 0
        overlap = (inside & truth[2::4, 2::4]).sum() / truth[2::4, 2::4].sum()
        assert overlap > 0.3
        assert rows[name, "rough mask"].dice > 0.3  # discs keep half of the logits that they get
    assert not np.array_equal(
        rough_mask(truth, np.random.default_rng(0)), rough_mask(truth, np.random.default_rng(1))
    )


def test_a_model_that_never_saw_masks_is_judged_by_none(discs) -> None:
    discs.previous_mask = False
    with pytest.raises(UserError, match="mask: this model was not trained with masks as prompts"):
        RoughMask().begin(discs, list(LABELS))


def test_options_of_protocols_are_checked() -> None:
    for made, message in (
        (lambda: Text(), r"Text\.bank"),
        (lambda: TextThenClicks(), r"TextThenClicks\.bank"),
        (lambda: RoughMask(-1.0), r"RoughMask\.roughness -1"),
    ):
        with pytest.raises(UserError, match=message):
            made()
