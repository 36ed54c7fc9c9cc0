"""A way of prompting and a loss from outside the package."""

import json

import torch
from accelerate.state import AcceleratorState

from data_prep.common.cli import run_command
from finetune.inference.loading import load_segmenter
from finetune.train import COMMAND

MINE = """
from dataclasses import dataclass

import numpy as np
import torch

from finetune.model.losses import MaskLoss, bce_loss
from finetune.model.prompt_encoder import Prompts
from finetune.prompts.boxes import box_of
from finetune.prompts.prompting import Prompting, Round


@dataclass(frozen=True)
class BoxesOnly(Prompting):
    rounds: int = 1
    '''Times that the same box is given.'''

    def predictions(self, segmenter, embeddings, batch, rng):
        boxes = torch.from_numpy(np.stack([box_of(mask) for mask in batch.masks.numpy()])).float()
        for _ in range(self.rounds):
            yield Round(segmenter.decode(embeddings, Prompts(batch.image, boxes=boxes)), True)


@dataclass(frozen=True)
class Entropy(MaskLoss):
    weight: float = 1.0

    def __call__(self, logits, targets, valid=None, iou_prediction=None):
        loss = self.weight * bce_loss(logits, targets, valid)
        return loss, {"bce": loss.detach()}
"""


def test_both_are_chosen_by_class_path_with_their_options(contributed, labelled_shards):
    (contributed / "mine.py").write_text(MINE)
    losses = []
    for rounds, weight in ((1, 1.0), (2, 1.0), (1, 3.0)):
        run = contributed / f"run{rounds}{weight}"
        options = ["--config=configs/finetune/quickstart.yaml", "--optim.steps=1"]
        options += ["--optim.batch_size=2", "--optim.warmup_steps=0", "--data.workers=0"]
        options += ["--model.image_size=64", f"--data.shards={labelled_shards}"]
        options += ["--prompts=mine.BoxesOnly", f"--prompts.rounds={rounds}"]
        options += ["--loss=mine.Entropy", f"--loss.weight={weight}", f"--output={run}"]
        run_command("finetune/train.py", COMMAND, options)
        AcceleratorState._reset_state(reset_partial_state=True)
        losses.append(json.loads((run / "metrics.jsonl").read_text())["loss"])
        assert not load_segmenter(run, torch.device("cpu")).previous_mask
    assert losses[0] == losses[1]  # the mean over rounds, which are all alike
    assert abs(losses[2] / losses[0] - 3) < 1e-5
