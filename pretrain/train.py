"""Stage one: pretrain SAM's image encoder on unlabelled images.

    accelerate launch pretrain/train.py --config configs/pretrain/X.yaml \\
        --data.shards DIR --output RUN
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.common.cli import run_command
from data_prep.common.files import write_json, write_text
from data_prep.loader.dataset import build_loader
from data_prep.loader.mixture import ShardMixture
from pretrain.config import PretrainConfig, build_objectives, check
from pretrain.encoder.pixels import normalise_pixels
from pretrain.encoder.sam import build_encoder
from pretrain.encoder.weights import ENCODER_FILE, load_encoder, load_strictly
from pretrain.engine.figures import draw_losses, draw_reconstructions
from pretrain.engine.loop import build_accelerator, open_run, train_steps
from pretrain.engine.optim import build_optimizer, load_optimizer
from pretrain.engine.run import State
from pretrain.objectives import MaskedAutoencoding
from pretrain.objectives.together import PretrainModel
from pretrain.transform import PretrainTransform, collate

OBJECTIVES_FILE = "objectives.safetensors"


def pretrain(config: PretrainConfig, resolved: str) -> None:
    """Run stage one to its last step, or until a signal asks it to stop."""
    check(config)
    accelerator = build_accelerator(config)
    device, world = accelerator.device, accelerator.num_processes
    batch_size = config.optim.check(world)
    shards = config.data.shards
    roots = [shards] if isinstance(shards, str) else shards
    dataset = ShardMixture(
        roots,
        config.data.weights,
        config.data.split,
        config.seed,
        config.data.window,
        PretrainTransform(config.image_size, config.data.min_scale),
    )
    encoder = build_encoder(config.encoder, config.start_from)
    encoder.recompute_blocks = config.recompute_blocks
    model = PretrainModel(encoder, build_objectives(config, encoder.size.width))

    state = State()
    checkpoint = open_run(accelerator, config, resolved)
    if checkpoint is not None:
        state = State.read(checkpoint)
        load_encoder(encoder, checkpoint / ENCODER_FILE)
        saved = checkpoint / OBJECTIVES_FILE
        load_strictly(model.objectives, load_file(saved), saved)
        accelerator.print(f"resuming after step {state.step} of {config.optim.steps}")
    if config.compile:
        for block in encoder.blocks:
            block.compile()
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config.optim))
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
    accelerator.print(
        f"{config.encoder}: {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters, "
        f"{len(dataset)} images, {config.optim.steps} steps of {config.optim.batch_size}, "
        f"{world} process{'es' if world > 1 else ''} on {device.type}"
    )
    for root, part, count in zip(roots, dataset.sets, dataset.counts, strict=True):
        accelerator.print(
            f"  {root}: {len(part)} images, {count / len(dataset):.0%} of the samples"
        )

    def losses_of(batch: tuple[Tensor, list[str]], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = normalise_pixels(batch[0].to(device, non_blocking=True))
        losses = wrapped(images, torch.Generator().manual_seed(seed))
        return model.total(losses), losses

    def write_weights(folder: Path) -> None:
        save_file(encoder.state_dict(), folder / ENCODER_FILE)
        save_file(model.objectives.state_dict(), folder / OBJECTIVES_FILE)
        write_json(
            folder / "encoder.json", {"name": config.encoder, "image_size": config.image_size}
        )

    train_steps(
        accelerator,
        config,
        wrapped,
        optimizer,
        loader,
        losses_of,
        keys_of=lambda batch: batch[1],
        write_weights=write_weights,
        state=state,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        figures = config.output / "figures"
        draw_losses(config.output, list(model.objectives), figures / "losses.png")
        for mae in (o for o in model.objectives.values() if isinstance(o, MaskedAutoencoding)):
            images = images_to_draw(dataset).to(device)
            draw_reconstructions(encoder, mae, images, figures / "reconstructions.png")
        write_text(config.output / "DONE", f"{config.optim.steps} steps\n")
    accelerator.end_training()


def images_to_draw(dataset: ShardMixture, count: int = 6, among: int = 48) -> Tensor:
    """(count, 3, S, S) images spread over a data set that show more than a plain ground.

    Of `among` images at even distances, each run of neighbours gives the one with the largest
    standard deviation.
    """
    indices = np.linspace(0, len(dataset) - 1, min(among, len(dataset))).astype(int)
    runs = np.array_split(indices, min(count, len(indices)))
    samples = [
        max((dataset[int(i)] for i in run), key=lambda sample: sample[0].float().std())
        for run in runs
    ]
    return normalise_pixels(collate(samples)[0])


if __name__ == "__main__":
    run_command("pretrain/train.py", PretrainConfig, pretrain)
