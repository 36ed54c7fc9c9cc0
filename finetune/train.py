"""Stage two: adapt a pretrained encoder to clicks and boxes with few labels.

    accelerate launch finetune/train.py --config configs/finetune/X.yaml \\
        --data.shards DIR --encoder RUN_OR_FILE_OR_HUB --output RUN
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_prep.common.cli import run_command
from data_prep.common.files import write_json, write_text
from data_prep.loader.dataset import build_loader
from finetune.config import TrainConfig
from finetune.data.dataset import SegmentationBatch, SegmentationDataset, collate
from finetune.inference.loading import SEGMENTER_FILE, SOURCES_FILE, check_sources
from finetune.model.losses import LossConfig, SegmentationLoss, mask_dice
from finetune.model.segmenter import Segmenter, build_model
from finetune.prompts.simulate import PromptConfig, prompted_rounds
from pretrain.engine.figures import draw_losses
from pretrain.engine.loop import build_accelerator, open_run, train_steps
from pretrain.engine.optim import build_optimizer, load_optimizer
from pretrain.engine.run import State

LOGGED = ("loss", "dice_first", "dice_last")


class PromptedLoss(nn.Module):
    """Loss of a batch over all prompt rounds, as one module for distributed training."""

    def __init__(self, segmenter: Segmenter, prompts: PromptConfig, loss: LossConfig) -> None:
        super().__init__()
        self.segmenter, self.prompts = segmenter, prompts
        self.loss = SegmentationLoss(loss)

    def forward(self, batch: SegmentationBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        """`loss`, the mean over trained rounds, and the Dice of the first and the last round."""
        embeddings = self.segmenter.encode(batch.images)
        masks = batch.masks[:, None]  # (M, 1, S, S)
        valid = batch.valid[batch.image][:, None]
        losses, dices = [], []
        for decoded, trained in prompted_rounds(
            self.segmenter, embeddings, batch.image, batch.masks, valid[:, 0], self.prompts, rng
        ):
            if trained or not dices:
                logits = self.segmenter.upsample(decoded.low_res)
                dices.append(mask_dice(logits, masks, valid).mean())
            if trained:
                losses.append(self.loss(logits, masks, valid, decoded.iou)[0])
        return {"loss": torch.stack(losses).mean(), "dice_first": dices[0], "dice_last": dices[-1]}


def train(config: TrainConfig, resolved: str) -> None:
    """Run stage two to its last step, or until a signal asks it to stop."""
    # A step that starts from clicks leaves the box embeddings without gradient.
    accelerator = build_accelerator(config, find_unused_parameters=True)
    device, world = accelerator.device, accelerator.num_processes
    batch_size = config.optim.check(world)
    dataset = SegmentationDataset(config.data, config.model.image_size, config.seed)
    segmenter = build_model(config.model, config.encoder, config.sam)
    model = PromptedLoss(segmenter, config.prompts, config.loss)
    fresh_optimizer = build_optimizer(segmenter, config.optim)

    state = State()
    checkpoint = open_run(accelerator, config, resolved)
    if checkpoint is not None:
        state = State.read(checkpoint)
        check_sources(segmenter, checkpoint)
        segmenter.load_trained(load_file(checkpoint / SEGMENTER_FILE), checkpoint / SEGMENTER_FILE)
        accelerator.print(f"resuming after step {state.step} of {config.optim.steps}")
    wrapped, optimizer = accelerator.prepare(model, fresh_optimizer)
    if checkpoint is not None:
        load_optimizer(optimizer, checkpoint)
    loader = build_loader(
        dataset,
        batch_size,
        accelerator.process_index,
        world,
        config.data.workers,
        samples_seen=state.samples_seen,
        collate=collate,
        pin_memory=device.type == "cuda",
    )
    for part in segmenter.describe():
        accelerator.print(
            f"{part.name:<40} {part.parameters / 1e6:8.2f} M  {part.state:<8} {part.source}"
        )
    accelerator.print(
        f"{len(dataset)} images, targets {', '.join(dataset.targets)}; {config.optim.steps} steps "
        f"of {config.optim.batch_size}, {world} process{'es' if world > 1 else ''} on "
        f"{device.type}"
    )

    def losses_of(batch: SegmentationBatch, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        results = wrapped(batch.to(device), np.random.default_rng(seed))
        return results["loss"], results

    def write_weights(folder: Path) -> None:
        save_file(segmenter.trained_state_dict(), folder / SEGMENTER_FILE)
        write_json(folder / SOURCES_FILE, segmenter.frozen_sources())

    train_steps(
        accelerator,
        config,
        wrapped,
        optimizer,
        loader,
        losses_of,
        keys_of=lambda batch: batch.keys,
        write_weights=write_weights,
        state=state,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        draw_losses(config.output, LOGGED, config.output / "figures" / "losses.png")
        write_text(config.output / "DONE", f"{config.optim.steps} steps\n")
    accelerator.end_training()


if __name__ == "__main__":
    run_command("finetune/train.py", TrainConfig, train)
