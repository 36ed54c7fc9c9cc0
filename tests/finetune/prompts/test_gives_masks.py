"""A model is given masks in use where it was given some in training, and only there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_prep.common.components import Component
from data_prep.common.errors import UserError
from finetune.inference.loading import load_segmenter
from finetune.prompts.carried import Carried
from finetune.prompts.mixed import Mixed
from finetune.prompts.prompting import Prompting
from finetune.prompts.replaced import ReplacedPoints
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.prompts.text_prompts import Texts
from helpers.steps import Everything, batch_of, padded_discs

WAYS = [
    ClicksAndBoxes(rounds=0),
    ClicksAndBoxes(rounds=0, box_share=1.0, skipped_rounds=3),
    ClicksAndBoxes(rounds=0, skipped_rounds=3),
    ClicksAndBoxes(rounds=0, mask_share=0.5),
    ClicksAndBoxes(rounds=1),
    ClicksAndBoxes(rounds=1, previous_mask=False),
]


@pytest.mark.parametrize("prompting", WAYS, ids=str)
def test_a_way_says_whether_its_prompts_hold_masks(prompting: Prompting) -> None:
    asked = []
    for seed in range(10):
        segmenter, batch = Everything(), batch_of(*padded_discs())
        rng = np.random.default_rng(seed)
        list(prompting.predictions(segmenter, torch.zeros(2, 1), prompting.posed(batch, rng), rng))
        asked += segmenter.asked
    given = any(prompts.masks is not None for prompts in asked)
    assert given == bool(prompting.gives_masks)
    if prompting.gives_masks is None:
        assert len(asked) == 10  # one prompt in each


def test_texts_replaced_points_and_stacks_say_it_too() -> None:
    assert [ReplacedPoints(rounds=each).gives_masks for each in (0, 1)] == [None, True]
    assert Texts(rounds=0).gives_masks is None
    assert [Texts(previous_mask=each).gives_masks for each in (True, False)] == [True, False]
    stacked = [Carried(rounds=0, previous_mask=each).gives_masks for each in (True, False)]
    assert stacked == [True, False]


def test_a_kind_that_prompts_once_goes_with_any_other() -> None:
    once = Component("finetune.prompts.simulate.ClicksAndBoxes", {"rounds": 0})
    for previous in (True, False):
        options = {"previous_mask": previous}
        again = Component("finetune.prompts.simulate.ClicksAndBoxes", options)
        assert Mixed({"once": once, "again": again}).gives_masks is previous
    assert Mixed({"once": once}).gives_masks is None
    inner = Component("finetune.prompts.mixed.Mixed", {"kinds": {"once": once}})
    assert Mixed({"inner": inner, "again": again}).gives_masks is False


def test_rough_masks_need_masks_in_later_prompts() -> None:
    with pytest.raises(UserError, match=r"prompts\.mask_share needs prompts\.previous_mask"):
        ClicksAndBoxes(mask_share=0.5, previous_mask=False)


def test_a_run_whose_way_of_prompting_is_not_here_is_as_its_document_says(make_run) -> None:
    run: Path = make_run("--model.image_size=64", targets=("disc",))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["prompts"] = {"class_path": "theirs.Prompts"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"theirs\.Prompts cannot be imported"):
        load_segmenter(run, torch.device("cpu"))
    path = run / "checkpoints" / "step-00000002" / "data.json"
    path.write_text(json.dumps({"targets": {"disc": [1]}, "previous_mask": True}))
    assert load_segmenter(run, torch.device("cpu")).previous_mask


@pytest.mark.parametrize("document", [{}, {"previous_mask": True}, {"mask_prompts": False}])
def test_a_run_that_was_prompted_once_is_given_no_mask_in_use(make_run, document) -> None:
    """Runs of earlier versions say `previous_mask`, whatever their rounds were."""
    run: Path = make_run("--model.image_size=64", "--prompts.rounds=0", targets=("disc",))
    path = run / "checkpoints" / "step-00000002" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | document))
    assert not load_segmenter(run, torch.device("cpu")).previous_mask


@pytest.mark.parametrize("document", [{}, {"previous_mask": True}, {"mask_prompts": True}])
def test_a_run_with_corrections_is_given_its_own_masks(make_run, document) -> None:
    run: Path = make_run("--model.image_size=64", targets=("disc",))
    path = run / "checkpoints" / "step-00000002" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | document))
    assert load_segmenter(run, torch.device("cpu")).previous_mask
