"""The training loop of both stages: step, check, log, save, and stop when asked to."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.files import write_json, write_text
from data_prep.loader.signals import term_blocked
from pretrain.encoder.weights import latest_checkpoint
from pretrain.engine.cpu import keep_freed_memory, use_cores
from pretrain.engine.optim import OPTIMIZER_FILE, learning_rate, set_learning_rate, step_seed
from pretrain.engine.progress import Progress
from pretrain.engine.run import (
    INTERRUPTED,
    INTERRUPTED_FILE,
    Metrics,
    RunOptions,
    State,
    StopRequest,
    prepare_folder,
    save_checkpoint,
)


def build_accelerator(options: RunOptions, find_unused_parameters: bool = False) -> Accelerator:
    """Accelerate for a run: one process or several, on GPUs or on the CPU.

    Args:
        find_unused_parameters: some steps leave some parameters without a gradient.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),  # else several processes would not find each other
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.optim.accumulate,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        ],
    )
    set_seed(options.seed)
    if accelerator.device.type == "cpu":
        use_cores(accelerator.num_processes, options.threads)
        keep_freed_memory()
    return accelerator


def open_run(accelerator: Accelerator, options: RunOptions, resolved: str) -> Path | None:
    """Make or take up the run folder; returns the checkpoint to resume from, or None."""
    if accelerator.is_main_process:
        prepare_folder(options, resolved)
    accelerator.wait_for_everyone()
    return latest_checkpoint(options.output)


def train_steps(
    accelerator: Accelerator,
    options: RunOptions,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    loader: Iterator[Any],
    losses_of: Callable[[Any, int], tuple[Tensor, dict[str, Tensor]]],
    keys_of: Callable[[Any], Sequence[str]],
    write_weights: Callable[[Path], None],
    state: State,
) -> None:
    """Train to the last step, from where `state` stands.

    Args:
        model: as prepared by `accelerator`.
        loader: this process's endless batches, from `state.samples_seen` on.
        losses_of: a batch and the seed of all randomness in it -> what to minimise, and the values
            to log by name (the same names each time, scalars).
        keys_of: the record keys of a batch, to name them when a loss is not finite.
        write_weights: writes what the stage keeps of its model into a checkpoint folder.

    Raises:
        UserError: a loss or gradient that is not finite; the batch's keys are saved.
        SystemExit: with status `INTERRUPTED`, after a signal, the finished step and a checkpoint.
    """
    optim, accumulate = options.optim, options.optim.accumulate
    rank, main = accelerator.process_index, accelerator.is_main_process
    stop = StopRequest()
    with term_blocked():
        batches = iter(loader)  # forks its workers before the metrics start a thread
    metrics = Metrics(options.output, state.step) if main else None
    progress = Progress(optim.steps, state.step, optim.batch_size)
    model.train()
    while state.step < optim.steps:
        step = state.step + 1
        rate = learning_rate(optim, step - 1)
        set_learning_rate(optimizer, rate)
        logged: dict[str, Tensor] = {}
        keys: list[str] = []
        for micro in range(accumulate):
            batch = next(batches)
            keys += keys_of(batch)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    total, parts = losses_of(batch, step_seed(options.seed, step, micro, rank))
                accelerator.backward(total)
            for name, value in parts.items():
                part = value.detach().float() / accumulate
                logged[name] = logged[name] + part if name in logged else part
        norm = accelerator.clip_grad_norm_(model.parameters(), optim.clip or float("inf"))
        stop_asked = torch.tensor(float(stop.asked), device=accelerator.device)
        values = accelerator.reduce(torch.stack([*logged.values(), stop_asked]), "mean")
        if not (values.isfinite().all() and norm.isfinite()):
            write_json(options.output / f"nonfinite-{rank}.json", {"step": step, "keys": keys})
            raise UserError(
                f"step {step}: a loss or gradient is not finite; the keys of the batch are in "
                f"{options.output}/nonfinite-*.json, the last checkpoint is intact"
            )
        optimizer.step()
        optimizer.zero_grad()

        state.step, state.samples_seen = step, state.samples_seen + optim.batch_size
        *losses, stopping = values.tolist()
        state.add(losses)
        last = step == optim.steps
        if step % options.log_every == 0 or last:
            means = dict(zip(logged, state.take_means(), strict=True))
            if metrics is not None:
                speed = progress.report(step, means, rate)
                metrics.log(step, {**means, "lr": rate, "images_per_second": speed})
        if main and (step % options.save_every == 0 or last or stopping):

            def write(folder: Path) -> None:
                write_weights(folder)
                torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
                state.write(folder)

            save_checkpoint(options.output, step, write, options.keep)
        if stopping and not last:
            if main:
                write_text(options.output / INTERRUPTED_FILE, f"after step {step}\n")
            accelerator.wait_for_everyone()
            accelerator.print(f"stopped after step {step}; continue with --resume auto")
            raise SystemExit(INTERRUPTED)
    if metrics is not None:
        metrics.close()
