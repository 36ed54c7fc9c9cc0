"""Training of a stage: set up, step, check, log, judge, save, and stop when asked to."""

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.files import write_json, write_text
from data_prep.loader.dataset import build_loader
from data_prep.loader.signals import term_blocked
from pretrain.engine.checkpoint import State, save_checkpoint
from pretrain.engine.cpu import keep_freed_memory, use_cores
from pretrain.engine.evaluator import Evaluator
from pretrain.engine.figures import draw_losses, save_figure
from pretrain.engine.memory import peak_memory
from pretrain.engine.metrics import Metrics
from pretrain.engine.optim import build_optimizer, learning_rate, set_learning_rate, step_seed
from pretrain.engine.progress import Progress
from pretrain.engine.resume import agree_on_checkpoint, on_rank_0
from pretrain.engine.run import check_folder, prepare_folder
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stage import Stage
from pretrain.engine.stop import INTERRUPTED, INTERRUPTED_FILE, StopRequest


def train(stage_class: type[Stage], options: RunOptions, resolved: str) -> None:
    """Run a stage to its last step, or until a signal asks it to stop.

    Args:
        stage_class: What is trained; made from the options and the device of this process.
        options: Options of the run, as the stage takes them.
        resolved: The same as YAML, kept in the run folder.

    Raises:
        UserError: Options that cannot run, a folder that cannot be used, or a loss that is not
            finite.
        SystemExit: With status `INTERRUPTED`, after a signal, the finished step and a checkpoint.
    """
    accelerator = build_accelerator(options, stage_class.find_unused_parameters)
    device, world = accelerator.device, accelerator.num_processes
    batch_size = options.optim.check(world)
    stage = stage_class(options, device)
    evaluators = {name: chosen.build(Evaluator) for name, chosen in options.evaluators.items()}
    new_optimizer = build_optimizer(stage.model, options.optim)
    changes = on_rank_0(accelerator, lambda: check_folder(options, resolved))
    checkpoint = agree_on_checkpoint(options.output, accelerator)
    bound = stage.bound(batch_size, world)
    state = State()
    if checkpoint is not None:
        state = checkpoint.state()
        for name in state.bound:  # an earlier version kept none
            if state.bound[name] != bound.get(name):
                raise UserError(
                    f"output {options.output} was started with {name} {state.bound[name]}, not"
                    f" {bound.get(name)}; continue it with the same or name another folder"
                )
        stage.load(checkpoint)
    on_rank_0(accelerator, lambda: prepare_folder(options, resolved, checkpoint, changes))
    if checkpoint is not None:
        accelerator.print(f"resuming after step {state.step} of {options.optim.steps}")
    state.bound = bound
    model, optimizer = accelerator.prepare(stage.model, new_optimizer)
    if checkpoint is not None:
        checkpoint.load_optimizer(optimizer)
    loader = build_loader(
        stage.dataset,
        batch_size,
        accelerator.process_index,
        world,
        stage.workers,
        samples_seen=state.samples_seen,
        collate=stage.collate,
        pin_memory=device.type == "cuda",
    )
    for line in stage.describe():
        accelerator.print(line)
    accelerator.print(
        f"{len(stage.dataset)} images, {options.optim.steps} steps of {options.optim.batch_size}, "
        f"{world} process{'es' if world > 1 else ''} on {device.type}"
    )
    train_steps(accelerator, options, stage, model, optimizer, loader, evaluators, state)
    accelerator.print(f"peak memory of a process: {peak_memory(device):.1f} GB")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        draw_losses(options.output, stage.curves)
        for name, figure in stage.draw().items():
            save_figure(figure, options.output / "figures" / f"{name}.png")
        write_text(options.output / "DONE", f"{options.optim.steps} steps\n")
    accelerator.end_training()


def build_accelerator(options: RunOptions, find_unused_parameters: bool) -> Accelerator:
    """Accelerate for a run: one process or several, on GPUs or on the CPU."""
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


def train_steps(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    batches: Iterable[Any],
    evaluators: dict[str, Evaluator],
    state: State,
) -> None:
    """Train to the last step, from where `state` stands; see `train`.

    Args:
        model: `stage.model` as prepared by `accelerator`.
        batches: This process's endless batches, from `state.samples_seen` on.
    """
    optim, accumulate = options.optim, options.optim.accumulate
    rank, main = accelerator.process_index, accelerator.is_main_process
    stop = StopRequest()
    with term_blocked():
        stream = iter(batches)  # forks its workers before the metrics start a thread
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
            batch = next(stream)
            keys += stage.keys(batch)
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    seed = step_seed(options.seed, step, micro, rank)
                    total, parts = stage.losses(model, batch, seed)
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
        for name, evaluator in evaluators.items():
            if step % evaluator.every == 0 or last:
                _judge(accelerator, options, stage, name, evaluator, metrics, step)
        if step % options.save_every == 0 or last or stopping:
            save(accelerator, options, stage, optimizer, state)
        if stopping and not last:
            if main:
                write_text(options.output / INTERRUPTED_FILE, f"after step {step}\n")
            accelerator.wait_for_everyone()
            accelerator.print(f"stopped after step {step}; continue with --resume auto")
            raise SystemExit(INTERRUPTED)
    if metrics is not None:
        metrics.close()


def save(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    optimizer: AcceleratedOptimizer,
    state: State,
) -> None:
    """Save a checkpoint. Called in all processes; they go on when it is whole."""
    if accelerator.is_main_process:
        save_checkpoint(
            options.output, state, stage.weights(), stage.documents(), optimizer, options.keep
        )
    accelerator.wait_for_everyone()


def _judge(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    name: str,
    evaluator: Evaluator,
    metrics: Metrics | None,
    step: int,
) -> None:
    """Call one evaluator in all processes and log what the main one returns.

    The random state of training is left as it was.
    """
    stage.model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        judgement = evaluator.evaluate(stage, accelerator)
    stage.model.train()
    if metrics is None:
        return
    numbers = {f"{name}/{key}": value for key, value in judgement.numbers.items()}
    if numbers:
        metrics.log(step, numbers)
        found = "  ".join(f"{key} {value:.4f}" for key, value in numbers.items())
        print(f"step {step:>6}/{options.optim.steps}  {found}", flush=True)
    for key, figure in judgement.pictures.items():
        save_figure(figure, options.output / "figures" / f"{name}_{key}.png")
