"""A prompt that may mean several objects is answered by the best of SAM's three masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.config import ModelConfig
from finetune.data.dataset import SegmentationBatch
from finetune.inference.loading import DATA, load_segmenter
from finetune.inference.prompted import PromptedImage
from finetune.model.building import build_model
from finetune.model.losses import SegmentationLoss
from finetune.model.prompt_encoder import Prompts
from finetune.model.segmenter import Segmenter
from finetune.prompts.simulate import ClicksAndBoxes
from finetune.rounds import PromptedLoss
from pretrain.sizes import SIZES, EncoderSize

SIZE = 64


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setitem(SIZES, "tiny", EncoderSize(32, 2, 2, (1,)))
    torch.manual_seed(0)
    return build_model(ModelConfig("tiny", SIZE))


@pytest.mark.parametrize("multimask", [False, True])
def test_outputs_for_ambiguous_prompts_are_trained(segmenter: Segmenter, multimask: bool) -> None:
    """Otherwise nothing but weight decay would move them."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    masks = torch.stack([(rows - y) ** 2 + (columns - 30) ** 2 < 80 for y in range(10, 58, 8)])
    valid, image = torch.ones(1, SIZE, SIZE, dtype=torch.bool), torch.zeros(6, dtype=torch.int64)
    pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE)).float()
    batch = SegmentationBatch(["key"], pixels, valid, masks, image, image)
    prompting = ClicksAndBoxes(box_share=1.0, rounds=0, multimask=multimask)
    loss = PromptedLoss(segmenter, prompting, SegmentationLoss())
    found = loss(batch, np.random.default_rng(0))
    found["loss"].backward()
    heads = segmenter.mask_decoder.output_hypernetworks_mlps
    moved = [bool(head.layers[-1].weight.grad.abs().sum() > 0) for head in heads]
    assert moved[0] is not multimask and any(moved[1:]) is multimask
    scores = segmenter.mask_decoder.iou_prediction_head.layers[-1].weight.grad.abs().sum(1)
    assert (scores > 0).tolist() == (
        [False, True, True, True] if multimask else [True] + 3 * [False]
    )


@torch.no_grad()
def test_in_use_the_mask_is_that_of_the_highest_expected_iou(segmenter: Segmenter) -> None:
    segmenter.eval().multimask = True
    rng = np.random.default_rng(0)
    prompted = PromptedImage(segmenter, rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    click, box = np.array([[[20.0, 30.0]]]), np.array([[10.0, 12.0, 40.0, 50.0]])
    one = torch.ones(1, 1, dtype=torch.int64)
    previous = torch.randn(1, 1, SIZE // 4, SIZE // 4)
    asked = {
        "click": ((click, [[1]]), Prompts(one[0] * 0, torch.tensor(click), one), True),
        "box": ((None, None, box), Prompts(one[0] * 0, boxes=torch.tensor(box)), True),
        "both": (
            (click, [[1]], box),
            Prompts(one[0] * 0, torch.tensor(click), one, torch.tensor(box)),
            False,
        ),
        "corrected": (
            (click, [[1]], None, previous),
            Prompts(one[0] * 0, torch.tensor(click), one, masks=previous),
            False,
        ),
    }
    for name, (given, prompts, several) in asked.items():
        decoded = segmenter.decode(prompted.embedding, prompts, multimask=several)
        assert decoded.low_res.shape[1] == (3 if several else 1), name
        best = decoded.low_res[:, int(decoded.iou.argmax())][:, None]
        _, logits = prompted.predict(*given)
        assert torch.equal(logits, best), name
    segmenter.multimask = False
    _, logits = prompted.predict(click, [[1]])
    assert torch.equal(logits, segmenter.decode(prompted.embedding, asked["click"][1]).low_res)


def test_a_run_is_used_as_it_was_trained(run_folder: Path) -> None:
    cpu = torch.device("cpu")
    assert not load_segmenter(run_folder, cpu).multimask  # of an earlier version
    newest = sorted((run_folder / "checkpoints").iterdir())[-1]
    (newest / f"{DATA}.json").write_text(json.dumps({"targets": {}, "multimask": True}))
    assert load_segmenter(run_folder, cpu).multimask
