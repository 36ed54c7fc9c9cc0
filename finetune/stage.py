"""Stage two as the engine trains it: labelled images, the segmenter and its prompts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from finetune.data.embeddings import EmbeddingCache, open_cache
from finetune.inference.loading import DATA, SEGMENTER, SOURCES, rebuild, restore
from finetune.model.building import build_model
from finetune.model.decoder import Decoded, require_prompts
from finetune.model.kept import keep_weights
from finetune.model.losses import MaskLoss, NoMaskLoss, mask_dice
from finetune.model.network import Network
from finetune.model.segmenter import Segmenter
from finetune.prompts.prompting import Prompting, Truth
from pretrain.encoder.pixels import normalise_pixels
from pretrain.encoder.sam import SamEncoder
from pretrain.engine.checkpoint import Checkpoint, checkpoints_of
from pretrain.engine.loop import train as train_stage
from pretrain.engine.one_by_one import mean_one_by_one
from pretrain.engine.stage import Stage


class PromptedLoss(nn.Module):
    """Loss of a batch over all prompt rounds, as one module for distributed training.

    Attributes:
        mean: Takes the mean of rounds' losses, as `mean_one_by_one`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        prompting: Prompting,
        loss: MaskLoss,
        cache: EmbeddingCache | None = None,
    ) -> None:
        super().__init__()
        self.segmenter, self.prompting, self.loss = segmenter, prompting, loss
        self.cache = cache
        self.mean: Callable[..., Tensor] = mean_one_by_one

    def forward(
        self,
        batch: SegmentationBatch,
        rng: np.random.Generator,
        rounds: Iterator[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, the mean over trained rounds, and the Dice of the first and the last round.

        Dice is that of the mask that would be used, not of the best of several.

        Args:
            rounds: From `each_round`: the result is the next one of these.
        """
        if rounds is not None:
            return next(rounds)
        dices: list[Tensor] = []
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        loss = self.mean(
            lambda embeddings: self._losses(embeddings, batch, rng, dices),
            self._encode(batch, rng),
            trained,
        )
        return {"loss": loss, "dice_first": dices[0], "dice_last": dices[-1]}

    def each_round(
        self, batch: SegmentationBatch, rng: np.random.Generator
    ) -> Iterator[dict[str, Tensor]]:
        """For each round its `loss`, made with the weights of the moment when it is asked for.

        Beside it the `mean` loss of the rounds so far, and their first and last Dice.
        """
        dices: list[Tensor] = []
        losses: list[Tensor] = []
        for loss in self._losses(self._encode(batch, rng), batch, rng, dices):
            losses.append(loss.detach())
            mean = torch.stack(losses).mean()
            yield {"loss": loss, "mean": mean, "dice_first": dices[0], "dice_last": dices[-1]}

    def _losses(
        self,
        embeddings: Tensor,
        batch: SegmentationBatch,
        rng: np.random.Generator,
        dices: list[Tensor],
    ) -> Iterator[Tensor]:
        """Losses of the trained rounds, each made when it is asked for; `dices` gets their Dice."""
        given = Truth(batch.masks, batch.image)
        rounds = self.prompting.predictions(self.segmenter, embeddings, batch, rng)
        for decoded, trained, truth in rounds:
            asked = truth or given
            masks = asked.masks[:, None]  # (M, 1, S, S)
            valid = batch.valid[asked.image][:, None]
            if trained or not dices:
                dices.append(self.round_dice(decoded, masks, valid))
            if trained:
                loss = self.round_loss(decoded, masks, valid)
                auxiliary = self.auxiliary_loss(embeddings, batch)
                yield loss if auxiliary is None else loss + auxiliary

    def _encode(self, batch: SegmentationBatch, rng: np.random.Generator) -> Tensor:
        """Embeddings, or the maps that a network is trained on."""
        encoder = self.segmenter.image_encoder
        if self.cache is None:
            images = normalise_pixels(batch.images, batch.valid)
            if isinstance(encoder, Network):
                return encoder.training_maps(images, batch.stacks, self._truth(batch), rng)
            return self.segmenter.encode(images, batch.stacks)
        assert isinstance(encoder, SamEncoder)  # of a whole network nothing is frozen
        frozen = encoder.features if self.cache.before_neck else encoder
        found = self.cache.complete(
            batch, lambda images, valid: frozen(normalise_pixels(images, valid))
        )
        return encoder.neck(found) if self.cache.before_neck else found

    # What the following compute at full size is freed when they return.
    def round_dice(self, decoded: Decoded, masks: Tensor, valid: Tensor) -> Tensor:
        """() mean Dice of the masks (M, 1, S, S) that would be used of one round."""
        used = self.segmenter.upsample(decoded.picked().low_res.detach())
        return mask_dice(used, masks, valid).mean()

    def round_loss(self, decoded: Decoded, masks: Tensor, valid: Tensor) -> Tensor:
        """() loss of one round, for masks and valid pixels (M, 1, S, S)."""
        logits = self.segmenter.upsample(decoded.low_res)
        return self.loss(logits, masks, valid, decoded.iou)[0]

    def auxiliary_loss(self, maps: Tensor, batch: SegmentationBatch) -> Tensor | None:
        """() loss that a network has besides that of the masks; see `Network.auxiliary_loss`."""
        network = self.segmenter.image_encoder
        if not isinstance(network, Network):
            return None
        return network.auxiliary_loss(maps, self._truth(batch), batch.valid)

    def _truth(self, batch: SegmentationBatch) -> Tensor:
        """Masks of every target in every image, (B, T, S, S) bool; empty where there is none."""
        size = (len(batch.images), len(self.segmenter.targets), *batch.masks.shape[1:])
        truth = batch.masks.new_zeros(size)
        truth[batch.image, batch.targets] = batch.masks
        return truth


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
        """The images, wherever they lie."""
        return {"data.shards of fingerprint": self.dataset.cases.shards.fingerprint[:12]}

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
            "previous_mask": self.prompting.previous_mask,
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
