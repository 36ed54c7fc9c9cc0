"""Stage two as the engine trains it: labelled images, the segmenter and its prompts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from finetune.config import TrainConfig
from finetune.data.dataset import (
    SegmentationBatch,
    SegmentationDataset,
    SegmentationSample,
    SegmentationStack,
    collate,
)
from finetune.inference.loading import DATA, SEGMENTER, SOURCES, rebuild, restore
from finetune.model.decoder import require_prompts
from finetune.model.kept import keep_weights
from finetune.model.losses import MaskLoss, mask_dice
from finetune.model.segmenter import Segmenter, build_model
from finetune.prompts.prompting import Prompting, Truth
from pretrain.encoder.pixels import normalise_pixels
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of
from pretrain.engine.loop import train as train_stage
from pretrain.engine.stage import Stage


class PromptedLoss(nn.Module):
    """Loss of a batch over all prompt rounds, as one module for distributed training."""

    def __init__(self, segmenter: Segmenter, prompting: Prompting, loss: MaskLoss) -> None:
        super().__init__()
        self.segmenter, self.prompting, self.loss = segmenter, prompting, loss

    def forward(self, batch: SegmentationBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        """`loss`, the mean over trained rounds, and the Dice of the first and the last round.

        Dice is that of the mask that would be used, not of the best of several.
        """
        images = normalise_pixels(batch.images, batch.valid)
        embeddings = self.segmenter.encode(images, batch.stacks)
        given = Truth(batch.masks, batch.image)
        losses: list[Tensor] = []
        dices: list[Tensor] = []
        rounds = self.prompting.predictions(self.segmenter, embeddings, batch, rng)
        for decoded, trained, truth in rounds:
            asked = truth or given
            masks = asked.masks[:, None]  # (M, 1, S, S)
            valid = batch.valid[asked.image][:, None]
            if trained or not dices:
                used = self.segmenter.upsample(decoded.picked().low_res.detach())
                dices.append(mask_dice(used, masks, valid).mean())
            if trained:
                logits = self.segmenter.upsample(decoded.low_res)
                losses.append(self.loss(logits, masks, valid, decoded.iou)[0])
        return {"loss": torch.stack(losses).mean(), "dice_first": dices[0], "dice_last": dices[-1]}


class SegmentationStage(Stage):
    """The segmenter under simulated prompts.

    Raises:
        UserError: Shards, weights or a recipe that cannot be used.
    """

    find_unused_parameters = True  # a step that starts from clicks trains no box embedding
    curves = ("loss", "dice_first", "dice_last")
    dataset: SegmentationDataset

    def __init__(self, options: TrainConfig, device: torch.device) -> None:
        self.options, self.device, self.workers = options, device, options.data.workers
        self.model_config = options.model
        self.dataset = SegmentationDataset(options.data, options.model.image_size, options.seed)
        self.decoder_of_encoder = options.encoder is not None and options.sam is None
        if options.resume == "auto" and checkpoints_of(options.output):
            self.segmenter = rebuild(options, self.dataset.targets, options.output)
        else:
            self.segmenter = build_model(
                options.model, self.dataset.targets, options.encoder, options.sam
            )
        self.prompting, loss = options.prompts.build(Prompting), options.loss.build(MaskLoss)
        require_prompts(self.segmenter.decoder, "prompts", self.prompting)
        self.prompting.begin(self.segmenter)
        if options.data.without_targets and not self.prompting.asks_for_absent:
            raise UserError(
                "data.without_targets: only texts can ask for what is not in an image; leave it 0"
            )
        together = self.segmenter.image_encoder.for_stacks
        if options.data.stack == 1 and (together or self.prompting.for_stacks):
            chosen = options.model.encoder_adapter if together else options.prompts
            raise UserError(
                f"data.stack is 1, and {chosen} learns from neighbouring slices; set it to 5, say"
            )
        # others need not look at the neighbours of a slice in use
        self.segmenter.stack = options.data.stack if together else 1
        self.model = PromptedLoss(self.segmenter, self.prompting, loss)

    def collate(
        self, samples: Sequence[SegmentationSample | SegmentationStack]
    ) -> SegmentationBatch:
        """Samples of one size to a batch, with the objects asked for and its first prompts."""
        rng = np.random.default_rng([self.dataset.seed, samples[0].draw, 1])
        return self.prompting.posed(collate(samples), rng)

    def losses(
        self, model: nn.Module, batch: SegmentationBatch, seed: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the Dice of the first and the last round."""
        results = model(batch.to(self.device), np.random.default_rng(seed))
        return results["loss"], results

    def keys(self, batch: SegmentationBatch) -> Sequence[str]:
        """Record keys, with the depth of a slice."""
        return batch.keys

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What is trained."""
        return {SEGMENTER: self.segmenter.trained_state_dict()}

    def savings(self) -> Sequence[str]:
        """Recomputed blocks."""
        return [] if self.model_config.recompute_blocks else ["--model.recompute_blocks true"]

    def documents(self) -> dict[str, Any]:
        """Where frozen weights came from, and what the model was trained on."""
        cases = self.dataset.cases
        data = {
            "targets": cases.targets,
            "window": cases.window,
            "multimask": self.prompting.multimask,
            "text_multimask": self.prompting.text_multimask,
            "stack": self.segmenter.stack,
        }
        return {SOURCES: self.segmenter.frozen_sources(), DATA: data}

    def keep(self, run: Path) -> None:
        """The files that weights were loaded from."""
        keep_weights(run, self.segmenter)

    def load(self, checkpoint: Checkpoint) -> None:
        """What was trained."""
        restore(self.segmenter, checkpoint)

    def describe(self) -> Iterable[str]:
        """What is trained, what is frozen and where it came from."""
        for part in self.segmenter.describe():
            size = f"{part.parameters / 1e6:8.2f} M"
            yield f"{part.name:<40} {size}  {part.state:<8} {part.source}"
        if self.decoder_of_encoder and "sam" in self.segmenter.files:
            yield "--encoder is a whole SAM checkpoint: prompt encoder and decoder are from it, too"
        yield f"targets {', '.join(self.dataset.targets)}"


def train(config: TrainConfig, resolved: str) -> None:
    """Run stage two to its last step, or until a signal asks it to stop."""
    train_stage(SegmentationStage, config, resolved)
