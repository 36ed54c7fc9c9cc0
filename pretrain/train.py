"""Stage one: pretrain SAM's image encoder on unlabelled images.

    accelerate launch pretrain/train.py --config configs/pretrain/X.yaml \\
        --data.shards DIR --output RUN
"""

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file

from data_prep.cli import run_command
from data_prep.errors import UserError
from data_prep.files import write_json, write_text
from data_prep.loader import ShardDataset, build_loader
from pretrain.checkpoint import ENCODER_FILE, latest_checkpoint, load_encoder
from pretrain.config import PretrainConfig, build_objectives, check
from pretrain.cpu import keep_freed_memory, use_cores
from pretrain.encoder import build_encoder
from pretrain.figures import draw_losses, draw_reconstructions
from pretrain.model import PretrainModel
from pretrain.objectives import MaskedAutoencoding
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
from pretrain.transform import PretrainTransform


def pretrain(config: PretrainConfig, resolved: str) -> None:
    """Run stage one to its last step, or until a signal asks it to stop."""
    check(config)
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.optim.accumulate
    )
    set_seed(config.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    batch_size = config.optim.check(world)
    if accelerator.device.type == "cpu":
        use_cores(world)
        keep_freed_memory()
    dataset = ShardDataset(
        config.data.shards,
        config.data.split,
        config.seed,
        config.data.window,
        PretrainTransform(config.image_size, config.data.min_scale),
    )
    encoder = build_encoder(config.encoder, config.start_from)
    model = PretrainModel(encoder, build_objectives(config, encoder.size.width))
    encoder.recompute_blocks = config.recompute_blocks

    if accelerator.is_main_process:
        prepare_folder(config.output, resolved, config.resume)
    accelerator.wait_for_everyone()
    checkpoint = latest_checkpoint(config.output)

    state = {"step": 0, "samples_seen": 0}
    if checkpoint is not None:
        state = json.loads((checkpoint / "state.json").read_text())
        load_encoder(encoder, checkpoint / ENCODER_FILE)
        model.objectives.load_state_dict(load_file(checkpoint / "objectives.safetensors"))
        accelerator.print(f"resuming after step {state['step']} of {config.optim.steps}")
    if config.compile:
        for block in encoder.blocks:
            block.compile()
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config.optim))
    if checkpoint is not None:
        load_optimizer(optimizer, checkpoint)
    loader = build_loader(
        dataset,
        batch_size,
        rank,
        world,
        config.data.workers,
        samples_seen=state["samples_seen"],
        pin_memory=accelerator.device.type == "cuda",
    )
    accelerator.print(
        f"{config.encoder}: {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters, "
        f"{len(dataset)} images, {config.optim.steps} steps of {config.optim.batch_size}, "
        f"{world} process{'es' if world > 1 else ''} on {accelerator.device.type}"
    )

    def write_checkpoint(folder: Path) -> None:
        save_file(encoder.state_dict(), folder / ENCODER_FILE)
        write_json(
            folder / "encoder.json", {"name": config.encoder, "image_size": config.image_size}
        )
        save_file(model.objectives.state_dict(), folder / "objectives.safetensors")
        torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
        write_json(folder / "state.json", state)

    metrics = Metrics(config.output, state["step"]) if accelerator.is_main_process else None
    stop = StopRequest()
    batches = iter(loader)
    wrapped.train()
    names = list(model.objectives)
    progress = Progress(config.optim.steps, state["step"], config.optim.batch_size)
    for step in range(state["step"] + 1, config.optim.steps + 1):
        rate = learning_rate(config.optim, step - 1)
        set_learning_rate(optimizer, rate)
        sums = torch.zeros(len(names) + 1, device=accelerator.device)
        for micro in range(config.optim.accumulate):
            images, keys = next(batches)
            images = images.to(accelerator.device, non_blocking=True)
            with accelerator.accumulate(wrapped):
                with accelerator.autocast():
                    losses = wrapped(
                        images,
                        torch.Generator().manual_seed(step_seed(config.seed, step, micro, rank)),
                    )
                    total = model.total(losses)
                stop_now = torch.tensor([float(stop.asked)], device=accelerator.device)
                values = torch.stack([losses[name].detach().float() for name in names])
                values = accelerator.reduce(torch.cat([values, stop_now]), "mean")
                if not values.isfinite().all():
                    write_json(
                        config.output / f"nonfinite-{rank}.json", {"step": step, "keys": keys}
                    )
                    raise UserError(
                        f"step {step}: a loss is not finite; the keys of the batch are in "
                        f"{config.output}/nonfinite-*.json, the last checkpoint is intact"
                    )
                sums += values / config.optim.accumulate
                accelerator.backward(total)
                if accelerator.sync_gradients and config.optim.clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.optim.clip)
                optimizer.step()
                optimizer.zero_grad()

        state = {"step": step, "samples_seen": state["samples_seen"] + config.optim.batch_size}
        *means, stopping = sums.tolist()
        last = step == config.optim.steps
        if metrics is not None and (step % config.log_every == 0 or last):
            by_name = dict(zip(names, means, strict=True))
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
        figures = config.output / "figures"
        draw_losses(config.output, names, figures / "losses.png")
        for mae in (o for o in model.objectives.values() if isinstance(o, MaskedAutoencoding)):
            shown = range(0, len(dataset), -(-len(dataset) // 6))
            images = torch.stack([dataset[i][0] for i in shown]).to(accelerator.device)
            draw_reconstructions(encoder, mae, images, figures / "reconstructions.png")
        write_text(config.output / "DONE", f"{config.optim.steps} steps\n")
    accelerator.end_training()


if __name__ == "__main__":
    run_command("pretrain/train.py", PretrainConfig, pretrain)
