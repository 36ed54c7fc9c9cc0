"""Stage two as the engine trains it: labelled images, the segmenter and its prompts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data_prep.common.errors import UserError
from finetune.config import TrainConfig
from finetune.data.dataset import (
    SegmentationBatch,
    SegmentationDataset,
    SegmentationSample,
    SegmentationStack,
    collate,
)
from finetune.data.embeddings import open_cache
from finetune.inference.loading import DATA, SEGMENTER, SOURCES, rebuild, restore
from finetune.model.building import build_model
from finetune.model.decoder import require_prompts
from finetune.model.kept import keep_weights
from finetune.model.losses import MaskLoss, NoMaskLoss
from finetune.model.network import Network
from finetune.prompts.prompting import Prompting
from finetune.rounds import PromptedLoss
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of
from pretrain.engine.loop import train as train_stage
from pretrain.engine.stage import Stage


class SegmentationStage(Stage):
    """The segmenter under simulated prompts.

    Raises:
        UserError: Shards, weights or a recipe that cannot be used.
    """

    find_unused_parameters = True  # a step that starts from clicks trains no box embedding
    curves = ("loss", "dice_first", "dice_last")
    dataset: SegmentationDataset
    model: PromptedLoss

    def __init__(self, options: TrainConfig, device: torch.device) -> None:
        self.options, self.device, self.workers = options, device, options.data.workers
        self.model_config = options.model
        self.prompting, loss = options.prompts.build(Prompting), options.loss.build(MaskLoss)
        self.dataset = SegmentationDataset(
            options.data, options.model.image_size, options.seed, self.prompting.every_target
        )
        self.decoder_of_encoder = options.encoder is not None and options.sam is None
        if options.resume == "auto" and checkpoints_of(options.output):
            self.segmenter = rebuild(options, self.dataset.targets, options.output)
        else:
            self.segmenter = build_model(
                options.model, self.dataset.targets, options.encoder, options.sam
            )
        self.rounds = self.prompting.steps
        require_prompts(self.segmenter.decoder, "prompts", self.prompting)
        self.prompting.begin(self.segmenter)
        network = self.segmenter.image_encoder
        has_own_loss = (
            isinstance(network, Network)
            and type(network).auxiliary_loss is not Network.auxiliary_loss
        )
        if isinstance(loss, NoMaskLoss) and not has_own_loss:
            raise UserError(
                "loss: NoMaskLoss is for networks with a loss of their own; leave it out"
            )
        if loss.whole_batch and self.prompting.for_stacks:
            raise UserError(
                "loss.whole_batch: masks that are carried from slice to slice are judged one by"
                " one; leave it false"
            )
        if options.data.without_targets != 0 and not self.prompting.asks_for_absent:
            raise UserError(
                "data.without_targets: only texts and decoders without prompts can ask for what is"
                " not in an image; leave it 0"
            )
        for_every = self.prompting.every_target
        if options.data.without_targets != 0 and options.data.stack > 1 and not for_every:
            raise UserError("data.without_targets: texts ask in single slices; set data.stack to 1")
        together = self.segmenter.image_encoder.for_stacks
        if options.data.stack == 1 and (together or self.prompting.for_stacks):
            seeing = options.model.network or options.model.encoder_adapter
            chosen = seeing if together else options.prompts
            raise UserError(
                f"data.stack is 1, and {chosen} learns from neighbouring slices; set it to 5, say"
            )
        if options.data.stack > 1 and not (together or self.prompting.for_stacks):
            raise UserError(
                f"data.stack is {options.data.stack}, and neither the model nor the prompts look at"
                " neighbouring slices; set it to 1, or choose them as"
                " configs/finetune/msa_3d.yaml does"
            )
        # others need not look at the neighbours of a slice in use
        self.segmenter.stack = options.data.stack if together else 1
        self.cache = open_cache(options, self.segmenter, self.dataset)
        self.model = PromptedLoss(self.segmenter, self.prompting, loss, self.cache)

    def collate(
        self, samples: Sequence[SegmentationSample | SegmentationStack]
    ) -> SegmentationBatch:
        """Samples of one size to a batch, with the objects asked for and its first prompts."""
        batch = collate(samples) if self.cache is None else self.cache.find(collate(samples))
        rng = np.random.default_rng([self.dataset.seed, samples[0].draw, 1])
        return self.prompting.posed(batch, rng)

    def losses(
        self, model: nn.Module, batch: SegmentationBatch, seed: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and the Dice of the first and the last round."""
        results = model(batch.to(self.device), np.random.default_rng(seed))
        return results["loss"], results

    def round_losses(
        self, model: nn.Module, batch: SegmentationBatch, seed: int
    ) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Those of each round of prompts, if each has a step of its own."""
        if self.rounds == 1:
            yield self.losses(model, batch, seed)
            return
        batch, rng = batch.to(self.device), np.random.default_rng(seed)
        rounds = self.model.each_round(batch, rng)
        for _ in range(self.rounds):
            results = model(batch, rng, rounds)
            total, results["loss"] = results["loss"], results.pop("mean")
            yield total, results

    def keys(self, batch: SegmentationBatch) -> Sequence[str]:
        """Record keys, with the depth of a slice."""
        return batch.keys

    def bound(self, per_pass: int, processes: int) -> dict[str, Any]:
        """The images, and how many there are in a pass where what one teaches depends on others."""
        bound: dict[str, Any] = {
            "data.shards of fingerprint": self.dataset.cases.shards.fingerprint[:12]
        }
        norms = (module for module in self.segmenter.modules() if isinstance(module, _BatchNorm))
        if self.model.loss.whole_batch or any(norms):
            bound["images judged or normalised together"] = per_pass
        return bound

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What is trained."""
        return {SEGMENTER: self.segmenter.trained_state_dict()}

    def savings(self) -> Sequence[str]:
        """Recomputed blocks."""
        model = self.model_config
        cannot = model.recompute_blocks or model.network is not None  # which has none of the blocks
        return [] if cannot else ["--model.recompute_blocks true"]

    def documents(self) -> dict[str, Any]:
        """Where frozen weights came from, and what the model was trained on."""
        cases = self.dataset.cases
        data = {
            "targets": cases.targets,
            "window": cases.window,
            "plane": cases.plane,
            "multimask": self.prompting.multimask,
            "mask_prompts": bool(self.prompting.gives_masks),
            "rough_masks": self.prompting.rough_masks,
            "text_multimask": self.prompting.text_multimask,
            "stack": self.segmenter.stack,
            "fingerprint": cases.shards.fingerprint,
            "prompts": self.prompting.digest,
        }
        return {SOURCES: self.segmenter.frozen_sources(), DATA: data}

    def keep(self, run: Path) -> None:
        """The files that weights were loaded from."""
        keep_weights(run, self.segmenter)

    def load(self, checkpoint: Checkpoint) -> None:
        """What was trained.

        Raises:
            UserError: The prompts are drawn from something else now.
        """
        restore(self.segmenter, checkpoint)
        digest = (checkpoint.document(DATA) or {}).get("prompts")
        if digest != self.prompting.digest:
            raise UserError(
                "prompts: their file of texts has changed since the last checkpoint, so that other"
                " texts would be drawn; put it back, or start a new run"
            )

    def describe(self) -> Iterable[str]:
        """What is trained, what is frozen and where it came from."""
        for part in self.segmenter.describe():
            size = f"{part.parameters / 1e6:8.2f} M"
            yield f"{part.name:<40} {size}  {part.state:<8} {part.source}"
        if self.decoder_of_encoder and "sam" in self.segmenter.files:
            yield "--encoder is a whole SAM checkpoint: prompt encoder and decoder are from it, too"
        if self.cache is not None:
            count = self.dataset.images * (self.options.data.views or 1)
            size = f"{count} embeddings, up to {count * self.cache.entry_bytes / 1e9:.2g} GB"
            yield f"data.cache: {size} in {self.cache.folder}"
        if self.options.data.validation and not self.options.evaluators:
            yield "warning: data.validation keeps groups apart, and no evaluator judges them"
        if self.options.data.without_targets and not self.dataset.cases.empty:
            yield "data.without_targets has no effect here: each image holds a target"
        yield f"targets {', '.join(self.dataset.targets)}"


def train(config: TrainConfig, resolved: str) -> None:
    """Run stage two to its last step, or until a signal asks it to stop."""
    train_stage(SegmentationStage, config, resolved)
