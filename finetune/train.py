"""Stage two: adapt a pretrained encoder to clicks and boxes with few labels.

    accelerate launch finetune/train.py --config configs/finetune/X.yaml \\
        --data.shards DIR --encoder RUN_OR_FILE_OR_HUB --output RUN
"""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_prep.cli import run_command
from data_prep.errors import UserError
from data_prep.files import write_json, write_text
from data_prep.loader import build_loader
from finetune.config import TrainConfig
from finetune.data import SegmentationBatch, SegmentationDataset, collate
from finetune.loading import SEGMENTER_FILE
from finetune.losses import LossConfig, SegmentationLoss, mask_dice
from finetune.model import Segmenter, build_model
from finetune.prompts.simulate import PromptConfig, prompted_rounds
from pretrain.checkpoint import latest_checkpoint
from pretrain.cpu import keep_freed_memory, use_cores
from pretrain.figures import draw_losses
from pretrain.optim import (
    OPTIMIZER_FILE,
    build_optimizer,
    learning_rate,
    load_optimizer,
    set_learning_rate,
    step_seed,
)
from pretrain.progress import Progress
from pretrain.run import INTERRUPTED, Metrics, StopRequest, prepare_folder, save_checkpoint

LOGGED = ("loss", "dice_first", "dice_last")


class PromptedLoss(nn.Module):
    """Loss of a batch over all prompt rounds, as one module for distributed training."""

    def __init__(self, segmenter: Segmenter, prompts: PromptConfig, loss: LossConfig) -> None:
        super().__init__()
        self.segmenter, self.prompts = segmenter, prompts
        self.loss = SegmentationLoss(loss)

    def forward(self, batch: SegmentationBatch, rng: np.random.Generator) -> dict[str, Tensor]:
        """`loss`, the mean over rounds, and the Dice of the first and the last round."""
        embeddings = self.segmenter.encode(batch.images)
        masks = batch.masks[:, None]  # (M, 1, S, S)
        valid = batch.valid[batch.image][:, None]
        losses, dices = [], []
        for decoded in prompted_rounds(
            self.segmenter, embeddings, batch.image, batch.masks, valid[:, 0], self.prompts, rng
        ):
            logits = self.segmenter.upsample(decoded.low_res)
            losses.append(self.loss(logits, masks, valid, decoded.iou)[0])
            dices.append(mask_dice(logits, masks, valid).mean())
        return {"loss": torch.stack(losses).mean(), "dice_first": dices[0], "dice_last": dices[-1]}


def train(config: TrainConfig, resolved: str) -> None:
    """Run stage two to its last step, or until a signal asks it to stop."""
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.optim.accumulate,
        # A step that starts from clicks leaves the box embeddings without gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    set_seed(config.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size = config.optim.check(world)
    if accelerator.device.type == "cpu":
        use_cores(world)
        keep_freed_memory()
    dataset = SegmentationDataset(config.data, config.model.image_size, config.seed)
    segmenter = build_model(config.model, config.encoder, config.sam)
    model = PromptedLoss(segmenter, config.prompts, config.loss)

    if accelerator.is_main_process:
        prepare_folder(config.output, resolved, config.resume)
    accelerator.wait_for_everyone()
    checkpoint = latest_checkpoint(config.output)
    state = {"step": 0, "samples_seen": 0}
    if checkpoint is not None:
        state = json.loads((checkpoint / "state.json").read_text())
        segmenter.load_trained(load_file(checkpoint / SEGMENTER_FILE), checkpoint / SEGMENTER_FILE)
        accelerator.print(f"resuming after step {state['step']} of {config.optim.steps}")
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(segmenter, config.optim))
    if checkpoint is not None:
        load_optimizer(optimizer, checkpoint)
    loader = build_loader(
        dataset,
        batch_size,
        rank,
        world,
        config.data.workers,
        samples_seen=state["samples_seen"],
        collate=collate,
        pin_memory=accelerator.device.type == "cuda",
    )
    for part in segmenter.describe():
        accelerator.print(
            f"{part.name:<40} {part.parameters / 1e6:8.2f} M  {part.state:<8} {part.source}"
        )
    accelerator.print(
        f"{len(dataset)} images, targets {', '.join(dataset.targets)}; {config.optim.steps} steps "
        f"of {config.optim.batch_size}, {world} process{'es' if world > 1 else ''} on "
        f"{accelerator.device.type}"
    )

    def write_checkpoint(folder: Path) -> None:
        save_file(segmenter.trained_state_dict(), folder / SEGMENTER_FILE)
        torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
        write_json(folder / "state.json", state)

    metrics = Metrics(config.output, state["step"]) if accelerator.is_main_process else None
    stop = StopRequest()
    batches = iter(loader)
    wrapped.train()
    progress = Progress(config.optim.steps, state["step"], config.optim.batch_size)
    for step in range(state["step"] + 1, config.optim.steps + 1):
        rate = learning_rate(config.optim, step - 1)
        set_learning_rate(optimizer, rate)
        sums = torch.zeros(len(LOGGED) + 1, device=accelerator.device)
        for micro in range(config.optim.accumulate):
            batch = next(batches).to(accelerator.device)
            rng = np.random.default_rng(step_seed(config.seed, step, micro, rank))
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    results = wrapped(batch, rng)
                stop_now = torch.tensor(float(stop.asked), device=accelerator.device)
                values = torch.stack([*(results[name].detach() for name in LOGGED), stop_now])
                values = accelerator.reduce(values, "mean")
                if not values.isfinite().all():
                    write_json(
                        config.output / f"nonfinite-{rank}.json", {"step": step, "keys": batch.keys}
                    )
                    raise UserError(
                        f"step {step}: the loss is not finite; the keys of the batch are in "
                        f"{config.output}/nonfinite-*.json, the last checkpoint is intact"
                    )
                sums += values / config.optim.accumulate
                accelerator.backward(results["loss"])
                if accelerator.sync_gradients and config.optim.clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.optim.clip)
                optimizer.step()
                optimizer.zero_grad()

        state = {"step": step, "samples_seen": state["samples_seen"] + config.optim.batch_size}
        *means, stopping = sums.tolist()
        last = step == config.optim.steps
        if metrics is not None and (step % config.log_every == 0 or last):
            by_name = dict(zip(LOGGED, means, strict=True))
            images_per_second = progress.report(step, by_name, rate)
            metrics.log(step, {**by_name, "lr": rate, "images_per_second": images_per_second})
        if accelerator.is_main_process and (step % config.save_every == 0 or last or stopping):
            save_checkpoint(config.output, step, write_checkpoint, config.keep)
        if stopping and not last:
            accelerator.print(f"stopped after step {step}; continue with --resume auto")
            raise SystemExit(INTERRUPTED)

    accelerator.wait_for_everyone()
    if metrics is not None:
        metrics.close()
        draw_losses(config.output, LOGGED, config.output / "figures" / "losses.png")
        write_text(config.output / "DONE", f"{config.optim.steps} steps\n")
    accelerator.end_training()


if __name__ == "__main__":
    run_command("finetune/train.py", TrainConfig, train)
