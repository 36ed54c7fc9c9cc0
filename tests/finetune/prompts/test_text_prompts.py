"""What a training step asks for by text, and kinds of prompts mixed in one training."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.data.dataset import SegmentationBatch
from finetune.model.decoder import Decoded
from finetune.model.prompt_encoder import Prompts
from finetune.prompts.mixed import Mixed
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.prompts.text_prompts import Texts

SIZE = 64
NAMES = ("disc", "square", "bar")
BANK = """
templates: {train: ["{}", "the {}"], held_out: ["find the {}"]}
targets:
  disc: {train: {names: [disc]}}
  square: {train: {names: [square]}}
  bar: {train: {names: [bar]}}
"""


class Asked(nn.Module):
    """Stands in for a segmenter; finds the whole image, and keeps what it was asked."""

    targets, text_encoder = NAMES, object()

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Prompts, bool]] = []

    def decode(self, embeddings: Tensor, prompts: Prompts, multimask: bool = False) -> Decoded:
        self.asked.append((prompts, multimask))
        count = 3 if multimask else 1
        everywhere = torch.ones(len(prompts), count, SIZE // 4, SIZE // 4)
        return Decoded(everywhere, torch.zeros(len(prompts), count))


@pytest.fixture
def bank(tmp_path: Path) -> str:
    (tmp_path / "texts.yaml").write_text(BANK)
    return str(tmp_path / "texts.yaml")


def batch_of() -> SegmentationBatch:
    """An image with disc and square, one with a disc whose square has no mask, and one without."""
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:24, 8:24] = masks[1, 40:56, 8:24] = masks[2, 30:40, 30:40] = True
    return SegmentationBatch(
        keys=["a", "b", "c"],
        images=torch.zeros(3, 1, SIZE, SIZE),
        valid=torch.ones(3, SIZE, SIZE, dtype=torch.bool),
        masks=masks,
        image=torch.tensor([0, 0, 1]),
        targets=torch.tensor([0, 1, 0]),
        held=[(0, 1), (0, 1), ()],
    )


def named_in(text: str) -> set[str]:
    return {name for name in NAMES if name in text.split()}


def test_the_truth_of_a_text_is_the_union_of_what_it_names(bank) -> None:
    texts = Texts(bank=bank, texts=3, several_share=0.5, absent_share=0.3)
    texts.begin(Asked())
    batch = batch_of()
    masks = {(0, "disc"): 0, (0, "square"): 1, (1, "disc"): 2}
    kinds = []
    for seed in range(40):
        posed = texts.posed(batch, np.random.default_rng(seed))
        assert posed.image.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        for image, mask, text in zip(
            posed.image.tolist(), posed.masks, posed.first.texts, strict=True
        ):
            named = named_in(text)
            expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            for name in named:
                if (image, name) in masks:
                    expected |= batch.masks[masks[image, name]]
            assert torch.equal(mask, expected), text
            assert named and (image, named) != (1, {"square"})  # it is there, but its mask is not
            kinds.append((image, "none" if not mask.any() else len(named)))
    assert {kind for image, kind in kinds if image == 0} == {"none", 1, 2}
    assert {kind for image, kind in kinds if image == 1} == {"none", 1}
    assert {kind for image, kind in kinds if image == 2} == {"none"}
    again = texts.posed(batch, np.random.default_rng(3))
    assert again.first.texts == texts.posed(batch, np.random.default_rng(3)).first.texts


@pytest.mark.parametrize("text_multimask", [False, True])
def test_a_text_comes_first_and_clicks_correct_it(text_multimask, bank) -> None:
    texts = Texts(bank=bank, texts=1, absent_share=1.0, rounds=2, text_multimask=text_multimask)
    model = Asked()
    texts.begin(model)
    posed = texts.posed(batch_of(), np.random.default_rng(0))
    rounds = list(texts.predictions(model, torch.zeros(3, 1), posed, np.random.default_rng(1)))
    assert len(rounds) == 3 and all(each.trained for each in rounds)
    assert [multimask for _, multimask in model.asked] == [text_multimask, False, False]
    first, second, third = (prompts for prompts, _ in model.asked)
    assert first.points is None and first.masks is None and first.is_ambiguous()
    assert second.texts == third.texts == first.texts == posed.first.texts
    assert third.labels.tolist() == [[0, 0]] * 3  # nothing is there, so clicks only take away
    assert torch.equal(third.masks, torch.ones(3, 1, 16, 16)) and not third.is_ambiguous()


def test_texts_need_a_model_and_a_file_that_know_them(bank) -> None:
    with pytest.raises(UserError, match="this model takes no texts"):
        Texts(bank=bank).begin(SimpleNamespace(text_encoder=None, targets=NAMES))
    with pytest.raises(UserError, match=r"no texts for target 'spleen'"):
        Texts(bank=bank).begin(SimpleNamespace(text_encoder=object(), targets=("spleen",)))
    with pytest.raises(UserError, match=r"'' is not a file of texts"):
        Texts().begin(Asked())
    with pytest.raises(UserError, match=r"prompts\.absent_share 2"):
        Texts(absent_share=2)


def test_kinds_have_their_shares_of_the_steps(bank) -> None:
    kinds = {
        "interactive": {"class_path": "ClicksAndBoxes", "rounds": 0},
        "text": {"class_path": "Texts", "init_args": {"bank": bank, "rounds": 0}},
    }
    mixed = Mixed(kinds=kinds, shares={"interactive": 1, "text": 3})
    assert mixed.asks_for_absent and mixed.gives_masks is None  # no kind prompts twice
    assert mixed.multimask and not mixed.text_multimask
    model = Asked()
    mixed.begin(model)
    drawn = []
    for seed in range(80):
        posed = mixed.posed(batch_of(), np.random.default_rng(seed))
        rounds = mixed.predictions(model, torch.zeros(3, 1), posed, np.random.default_rng(0))
        assert len(list(rounds)) == 1
        prompts, _ = model.asked[-1]
        assert (prompts.texts is None) == (posed.first.kind == "interactive")
        assert len(prompts) == len(posed.masks) == (3 if prompts.texts is None else 6)
        drawn.append(posed.first.kind)
    assert 45 < drawn.count("text") < 75
    nothing = batch_of()
    nothing.masks, nothing.image = nothing.masks[:0], nothing.image[:0]
    nothing.targets, nothing.held = nothing.targets[:0], [(), (), ()]
    for seed in range(9):  # there is nothing to click on
        posed = mixed.posed(nothing, np.random.default_rng(seed))
        assert posed.first.kind == "text" and not posed.masks.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"prompts\.kinds: give at least one"),
        (
            {"kinds": {"a": "ClicksAndBoxs"}},
            r"prompts\.kinds\.a: there is no class 'ClicksAndBoxs'",
        ),
        ({"kinds": {"a": {"rounds": 1}}}, r"prompts\.kinds\.a: names no class"),
        ({"kinds": {"a": "TargetsOnly"}}, r"TargetsOnly gives no prompts"),
        ({"kinds": {"a": {"class_path": "Texts", "bnak": "x"}}}, r"kinds\.a\.bnak: .*bank"),
        ({"kinds": {"a": "Texts"}, "shares": {"b": 1}}, r"prompts\.shares: give one each for a"),
        ({"kinds": {"a": "Texts"}, "shares": {"a": 0}}, r"prompts\.shares must not be negative"),
        (
            {
                "kinds": {
                    "a": "Texts",
                    "b": {"class_path": "ClicksAndBoxes", "previous_mask": False},
                }
            },
            r"previous_mask must be the same in all of them",
        ),
    ],
)
def test_mixtures_that_cannot_be_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        Mixed(**options)


def test_a_rough_mask_may_come_first_and_rounds_may_add_no_click() -> None:
    model, batch = Asked(), batch_of()
    prompting = ClicksAndBoxes(mask_share=1.0, mask_only_share=0.5, rounds=3, skipped_rounds=4)
    numbers = []
    for seed in range(12):
        model.asked.clear()
        posed = prompting.posed(batch, np.random.default_rng(seed))
        rounds = prompting.predictions(model, torch.zeros(3, 1), posed, np.random.default_rng(seed))
        assert len(list(rounds)) == 4  # none is skipped
        prompts = [asked for asked, _ in model.asked]
        assert prompts[0].points is None and prompts[0].boxes is None
        assert not any(multimask for _, multimask in model.asked)  # a mask says which object
        truths = batch.masks.reshape(3, 16, 4, 16, 4).float().mean((2, 4)) >= 0.5
        guess = prompts[0].masks[:, 0] >= 0
        overlap = (guess & truths).sum((1, 2)) / (guess | truths).sum((1, 2))
        assert guess.shape == truths.shape and overlap.min() > 0.2
        for later in prompts[1:]:
            assert torch.equal(later.masks, torch.ones(3, 1, 16, 16))
        numbers.append([0 if each.labels is None else each.labels.shape[1] for each in prompts])
    steps = np.diff(numbers)
    assert set(steps.ravel()) == {0, 1} and 0.3 < steps.mean() < 0.7
    with pytest.raises(UserError, match=r"mask_only_share needs prompts\.previous_mask"):
        ClicksAndBoxes(mask_only_share=0.5, previous_mask=False)
