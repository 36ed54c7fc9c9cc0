"""Training of a stage: set up, step, check, log, judge, save, and stop when asked to."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from textwrap import wrap
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.files import write_text
from data_prep.loader.batches import OrderedDataset, build_loader
from data_prep.loader.signals import term_blocked
from pretrain.engine.checkpoint import State
from pretrain.engine.cpu import bf16_is_fast, keep_freed_memory, use_cores
from pretrain.engine.evaluator import Evaluator
from pretrain.engine.figures import draw_losses, draw_rates, save_figure
from pretrain.engine.launch import allotted_cores, join_step, processes_here
from pretrain.engine.lock import RunLock
from pretrain.engine.looks import Looks
from pretrain.engine.memory import devices_of, peak_memory
from pretrain.engine.metrics import Metrics, require_trackers
from pretrain.engine.nonfinite import nonfinite_error, without_keys
from pretrain.engine.optim import build_optimizer, learning_rate, set_learning_rate, step_seed
from pretrain.engine.passes import choose_passes, machine_of, one_line_out_of_memory
from pretrain.engine.progress import Progress
from pretrain.engine.rates import device_peak
from pretrain.engine.resume import agree_on_checkpoint, ended_with_others, on_rank_0
from pretrain.engine.run import check_folder, is_done, prepare_folder, take_folder
from pretrain.engine.run_options import RunOptions, Schedule
from pretrain.engine.saving import save, tolerated
from pretrain.engine.shared import check_shared
from pretrain.engine.stage import Stage
from pretrain.engine.stop import DONE_FILE, INTERRUPTED, INTERRUPTED_FILE, StopRequest
from pretrain.engine.watch import Watch

LINE = 120
"""Longest line of an evaluator's numbers."""


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
    if on_rank_0(accelerator, lambda: is_done(options, resolved)):
        accelerator.print(f"output {options.output} is done already")
        accelerator.end_training()
        return
    if accelerator.mixed_precision != options.precision:
        accelerator.print("precision: bf16 is slow on this CPU, so this run computes in fp32")
        options = replace(options, precision="no")
    share = options.optim.share(world)
    require_trackers(options.trackers)
    stage = stage_class(options, device)
    schedule = options.optim.schedule(len(stage.dataset))
    evaluators = {name: chosen.build(Evaluator) for name, chosen in options.evaluators.items()}
    for evaluator in evaluators.values():
        evaluator.prepare(stage, accelerator)
    new_optimizer = build_optimizer(stage.model, options.optim)
    lock = RunLock()
    on_rank_0(accelerator, lambda: check_folder(options, resolved))
    check_shared(options.output, accelerator)  # a folder that is refused keeps no lock file
    changes = on_rank_0(accelerator, lambda: take_folder(options, resolved, lock))
    checkpoint = agree_on_checkpoint(options.output, accelerator)
    state = State() if checkpoint is None else checkpoint.state()
    passes = choose_passes(accelerator, options, stage, state)
    bound = stage.bound(share // passes, world)
    for name in state.bound:  # an earlier version kept none
        if state.bound[name] != bound.get(name):
            raise UserError(
                f"output {options.output} was started with {name} {state.bound[name]}, not"
                f" {bound.get(name)}; continue it with the same or name another folder"
            )
    if checkpoint is not None:
        stage.load(checkpoint)
    on_rank_0(accelerator, lambda: prepare_folder(options, resolved, checkpoint, changes))
    on_rank_0(accelerator, lambda: stage.keep(options.output))
    if checkpoint is not None:
        accelerator.print(f"resuming after step {state.step} of {schedule.steps}")
    state.bound, state.passes, state.machine = bound, passes, machine_of(accelerator)
    state.steps = schedule.steps
    accelerator.gradient_accumulation_steps = passes
    model, optimizer = accelerator.prepare(stage.model, new_optimizer)
    if checkpoint is not None:
        checkpoint.load_optimizer(optimizer)
    dataset = without_keys(stage, options.skip_keys, options.seed)
    loader = build_loader(
        dataset,
        share // passes,
        accelerator.process_index,
        world,
        stage.workers,
        samples_seen=state.samples_seen,
        collate=stage.collate,
        pin_memory=device.type == "cuda",
    )
    for line in stage.describe():
        accelerator.print(line)
    epochs = schedule.steps * options.optim.batch_size / len(stage.dataset)
    accelerator.print(
        f"{len(stage.dataset)} images, {schedule.steps} steps of {options.optim.batch_size}, "
        f"{world} process{'es' if world > 1 else ''} on {device.type}; {epochs:.4g} epochs, "
        f"{schedule.warmup_steps} steps of warm-up"
    )
    with (
        ended_with_others(accelerator),
        one_line_out_of_memory(accelerator, options, stage, passes),
    ):
        train_steps(
            accelerator, options, stage, model, optimizer, dataset, loader, evaluators, state
        )
    accelerator.print(f"peak memory of a process: {peak_memory(device):.1f} GB")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with tolerated("a picture"):
            draw_losses(options.output, stage.curves)
            draw_rates(options.output)
        for name, figure in stage.draw().items():
            with tolerated("a picture"):
                save_figure(figure, options.output / "figures" / f"{name}.png")
        write_text(options.output / DONE_FILE, f"{schedule.steps} steps\n")
    if stage.damaged is not None:
        found, path = stage.damaged.count(), stage.damaged.path
        accelerator.print(f"{found} damaged records were replaced" + f"; see {path}" * bool(found))
    lock.release()
    accelerator.wait_for_everyone()  # srun gives the others little time once one has ended
    accelerator.end_training()


def build_accelerator(options: RunOptions, find_unused_parameters: bool) -> Accelerator:
    """Accelerate for a run: one process or several, on GPUs or on the CPU."""
    join_step(options.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    accelerator = Accelerator(
        cpu=device.type == "cpu",  # else several processes would not find each other
        mixed_precision=options.precision if bf16_is_fast(device) else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        ],
    )
    set_seed(options.seed)
    if accelerator.device.type == "cpu":
        use_cores(processes_here(accelerator.num_processes), options.threads, allotted_cores())
        keep_freed_memory()
    return accelerator


def train_steps(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    dataset: OrderedDataset,
    batches: Iterable[Any],
    evaluators: dict[str, Evaluator],
    state: State,
) -> None:
    """Train to the last step, from where `state` stands; see `train`.

    Between looks (`check_every`, and before all that is logged, judged or saved) nothing waits for
    the device.

    Args:
        model: `stage.model` as prepared by `accelerator`.
        dataset: What `batches` were read from.
        batches: This process's endless batches, from `state.samples_seen` on.
    """
    schedule, passes = options.optim.schedule(len(stage.dataset)), state.passes
    device, rank = accelerator.device, accelerator.process_index
    every = options.check_every or (1 if device.type == "cpu" else None)
    stop, looks = StopRequest(), Looks(accelerator, every, state.step)
    with term_blocked():
        stream = iter(batches)  # forks its workers before the metrics start a thread
    metrics, progress = start_metrics(accelerator, options, stage, schedule, state)
    watch = Watch(device, state)
    optimizer.optimizer.found_inf = watch.found
    model.train()
    while state.step < schedule.steps:
        step = state.step + 1
        rate = learning_rate(schedule, step - 1)
        set_learning_rate(optimizer, rate)
        losses: list[Iterator[tuple[Tensor, Mapping[str, Tensor]]]] = []
        for index in range(stage.rounds):  # one, but for stages that step several times per batch
            logged: dict[str, Tensor] = {}
            for micro in range(passes):
                if index == 0:
                    seed = step_seed(options.seed, step, micro, rank)
                    losses.append(stage.round_losses(model, next(stream), seed))
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        total, parts = next(losses[micro])
                    accelerator.backward(total)
                for name, value in parts.items():
                    part = value.detach().float() / passes
                    logged[name] = logged[name] + part if name in logged else part
            norm = accelerator.clip_grad_norm_(
                model.parameters(), options.optim.clip or float("inf")
            )
            values = accelerator.reduce(torch.stack([*logged.values()]), "mean")
            watch.add(step, values, norm, counted=index == stage.rounds - 1)
            optimizer.step()  # does nothing from the first step on that was not finite
            optimizer.zero_grad()
        state.step, state.samples_seen = step, state.samples_seen + options.optim.batch_size

        last = step == schedule.steps
        logs, saves = step % options.log_every == 0 or last, step % options.save_every == 0 or last
        judges = [name for name, each in evaluators.items() if step % each.every == 0 or last]
        if not (logs or saves or judges or looks.due(step)):
            continue
        if wrong := watch.look(state):
            raise nonfinite_error(accelerator, options, stage, dataset, state, wrong)
        stopping = looks.agree(step, stop.asked)
        if logs:
            means = dict(zip(logged, watch.take_means(state), strict=True))
            if metrics is not None:
                rates = progress.report(step, means, rate)
                if stage.damaged is not None:
                    rates["damaged"] = stage.damaged.count()
                metrics.log(step, {**means, "lr": rate, **rates})
        # a scheduler that asks to stop waits for the save, but not for a judgement
        for name in judges if last or not stopping else ():
            _judge(accelerator, options, schedule, stage, name, evaluators[name], metrics, step)
        if saves or stopping:
            ends = last or stopping
            save(accelerator, options, stage, optimizer, state, metrics, schedule.steps, ends)
        if stopping and not last:
            if accelerator.is_main_process:
                write_text(options.output / INTERRUPTED_FILE, f"after step {step}\n")
            accelerator.wait_for_everyone()
            accelerator.print(f"stopped after step {step}; continue with --resume auto")
            raise SystemExit(INTERRUPTED)
    if metrics is not None:
        metrics.close()


def start_metrics(
    accelerator: Accelerator, options: RunOptions, stage: Stage, schedule: Schedule, state: State
) -> tuple[Metrics | None, Progress]:
    """Metrics of the main process, and what prints its lines with rates and MFU."""
    batch_size = options.optim.batch_size
    if not accelerator.is_main_process:
        return None, Progress(schedule.steps, state.step, batch_size)
    flops, peak = stage.flops(), 0.0
    if flops:
        peak, source = device_peak(accelerator.device, options.precision)
        reach = f"{peak / 1e12:.3g} TFLOP/s, {source}"
        print(f"{flops / 1e9:.1f} GFLOP per image; MFU is the share of {reach}")
    progress = Progress(
        schedule.steps, state.step, batch_size, flops, peak * accelerator.num_processes
    )
    return Metrics(options.output, state.step, options.trackers), progress


def _judge(
    accelerator: Accelerator,
    options: RunOptions,
    schedule: Schedule,
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
    evaluator.step = step
    with torch.no_grad(), torch.random.fork_rng(devices_of(accelerator.device)):
        judgement = evaluator.evaluate(stage, accelerator)
    stage.model.train()
    if metrics is None:
        return
    numbers = {f"{name}/{key}": value for key, value in judgement.numbers.items()}
    if numbers:
        metrics.log(step, numbers)
        # probes of many sets have many numbers; no line breaks between a name and its number
        found = "  ".join(f"{key}\0{value:.4f}" for key, value in numbers.items())
        text = "\n    ".join(wrap(found, LINE, break_on_hyphens=False)).replace("\0", " ")
        print(f"step {step:>6}/{schedule.steps}  {text}", flush=True)
    for key, figure in judgement.pictures.items():
        file = f"{name}_{key}.png" if evaluator.names_pictures else f"{key}.png"
        with tolerated("a picture"):
            save_figure(figure, options.output / "figures" / file)
