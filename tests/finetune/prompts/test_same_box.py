"""An object's box reaches the prompt encoder as the same numbers in training and in use."""

import numpy as np
import pytest
import torch

from data_prep.records import Sample
from finetune.config import Augmentation, SegmentationDataConfig
from finetune.data.dataset import SegmentationDataset, collate
from finetune.inference.objects import parse_object
from finetune.inference.prompted import PromptedImage
from finetune.inference.segmenting import segment
from finetune.prompts.boxes import box_of
from finetune.prompts.simulate import ClicksAndBoxes

ALIKE = Augmentation(0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def boxes_seen(discs, monkeypatch):
    """The stand-in segmenter, and the boxes that it was asked about."""
    seen = []
    decode = discs.decode

    def keep(embeddings, prompts, multimask):
        seen.append(prompts.boxes)
        return decode(embeddings, prompts, multimask)

    monkeypatch.setattr(discs, "decode", keep)
    return seen


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [
        ((16, 14), 0.0),  # enlarged four times
        ((64, 50), 0.0),
        ((128, 96), 0.5),  # what is made smaller, or not by a whole factor, has its edges rounded
        ((37, 53), 0.5),
    ],
)
def test_the_box_of_a_mask_is_the_same_in_training_and_in_use(
    shape, tolerance, make_shards, discs, boxes_seen
):
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 4 : shape[0] // 2 + 1, shape[1] // 5 : shape[1] // 5 + 4] = 1
    image = np.zeros(shape, np.uint8)
    shards = make_shards([Sample(image, mask, group="p")], {"organ": [1]})
    config = SegmentationDataConfig(shards=shards, augmentation=ALIKE)
    batch = collate([SegmentationDataset(config, 64)[0]])
    prompting = ClicksAndBoxes(box_share=1.0, box_jitter=0.0, rounds=0)
    list(prompting.predictions(discs, torch.zeros(1), batch, np.random.default_rng(0)))
    box = ",".join(map(str, box_of(mask > 0)))
    segment(PromptedImage(discs, image), parse_object(box=box)[None])
    trained, used = boxes_seen
    assert (trained[0, 2:] > trained[0, :2]).all()
    torch.testing.assert_close(used.double(), trained.double(), atol=tolerance, rtol=0)
