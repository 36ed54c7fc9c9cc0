"""How many passes make up a step so that one fits the memory, and what to do when it does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from data_prep.common.errors import UserError
from pretrain.engine.checkpoint import State
from pretrain.engine.cpu import bf16_is_fast
from pretrain.engine.launch import processes_here
from pretrain.engine.memory import devices_of, free_memory, pass_memory
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stage import Stage

USABLE = 0.8
"""Share of a machine's free memory that training plans with."""
OPTIMIZER_BYTES, BUCKET_BYTES = 8, 4
"""Of a trained parameter: AdamW's two averages, and what processes exchange of its gradient."""
DISTINCT = 8
"""Samples that a trial batch repeats."""


def machine_of(accelerator: Accelerator) -> str:
    """What a run's memory depends on."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{accelerator.num_processes} x {name}"


def choose_passes(accelerator: Accelerator, options: RunOptions, stage: Stage, state: State) -> int:
    """Passes per step, the same in all processes: as given, or with `auto` as few as fit.

    A run that goes on keeps its number on the machine that it was chosen for. Elsewhere only those
    numbers are tried that leave `Stage.bound` as it was; if there are none, any, and the run is
    refused.

    Raises:
        UserError: Not even one image fits.
    """
    if options.optim.accumulate != "auto":
        return options.optim.accumulate
    world = accelerator.num_processes
    share = options.optim.share(world)
    candidates = divisors(share)
    if state.step:
        if state.machine == machine_of(accelerator):
            return state.passes
        as_before = [
            n
            for n in candidates
            # of a run of an earlier version some were not kept
            if state.bound.items() <= stage.bound(share // n, world).items()
        ]
        candidates = as_before or candidates
    stage.model.to(accelerator.device)
    with torch.random.fork_rng(devices_of(accelerator.device)), stage.alone():
        if accelerator.device.type == "cpu":
            passes = _by_counting(accelerator, options, stage, share, candidates)
        else:
            passes = _by_trying(accelerator, options, stage, share, candidates)
    accelerator.print(
        f"optim.accumulate auto: {passes} {'passes' if passes > 1 else 'pass'} per step, of"
        f" {share // passes} images in each process"
    )
    return passes


def divisors(number: int) -> list[int]:
    """All divisors of a number, the smallest first."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _by_trying(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    share: int,
    candidates: Sequence[int],
) -> int:
    """The first number with which a real pass runs in all processes; after a failure twice it."""
    trained = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    each = OPTIMIZER_BYTES + (BUCKET_BYTES if accelerator.num_processes > 1 else 0)
    tried = 0
    for passes in candidates:
        if passes < 2 * tried:
            continue
        batch = trial_batch(stage, share // passes)
        if all(gather_object([_runs(accelerator, stage, batch, each * trained)])):
            return passes
        tried = passes
    raise UserError(
        f"out of memory with one image in a pass; {advice(options, stage, accelerator.device)}"
    )


def _runs(accelerator: Accelerator, stage: Stage, batch: Any, reserved: int) -> bool:
    """Whether a pass fits beside `reserved` bytes."""
    held = None
    try:
        held = torch.empty(reserved, dtype=torch.uint8, device=accelerator.device)
        _loss(accelerator, stage, batch).backward()
        runs = True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        runs = False
    del held
    stage.model.zero_grad(set_to_none=True)
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return runs


def _by_counting(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    share: int,
    candidates: Sequence[int],
) -> int:
    """The first number whose pass is expected to fit, from the tensors of two small passes."""
    parameters = list(stage.model.parameters())
    small, large = min(2, share), min(4, share)

    def count(images: int) -> int:
        batch = trial_batch(stage, images)
        return pass_memory(parameters, lambda: _loss(accelerator, stage, batch))

    first, second = count(small), count(large)
    per_image = (second - first) / (large - small) if large > small else first / small
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    fixed = max(0.0, first - small * per_image)
    fixed += trained * (4 + OPTIMIZER_BYTES + BUCKET_BYTES)
    # The process with the least memory decides.
    processes = processes_here(accelerator.num_processes)
    room = min(gather_object([USABLE * free_memory() / processes])) - fixed
    for passes in candidates:
        if share // passes * per_image <= room:
            return passes
    raise UserError(
        f"one image takes {(fixed + per_image) / 1e9:.1f} GB, and {(room + fixed) / 1e9:.1f} GB are"
        f" free for each process; {advice(options, stage, accelerator.device)}"
    )


def trial_batch(stage: Stage, images: int) -> Any:
    """A batch of real samples, the first of the data set over and over."""
    order = stage.dataset.order(0)[: min(images, DISTINCT)]
    samples = [stage.dataset[int(index), draw] for draw, index in enumerate(order)]
    return stage.collate(list(islice(cycle(samples), images)))


def _loss(accelerator: Accelerator, stage: Stage, batch: Any) -> Tensor:
    with accelerator.autocast():
        return stage.losses(stage.model, batch, 0)[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a tensor found no memory, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("not enough memory", "DefaultCPUAllocator", "out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def advice(options: RunOptions, stage: Stage, device: torch.device) -> str:
    """Options with which a pass takes less, other than the number of passes."""
    fp32 = options.precision == "no" and bf16_is_fast(device)
    savings = [*(["--precision bf16"] if fp32 else []), *stage.savings()]
    return (
        f"take less memory with {' or '.join(savings)}" if savings else "a larger device is needed"
    )


@contextmanager
def one_line_out_of_memory(
    accelerator: Accelerator, options: RunOptions, stage: Stage, passes: int
) -> Iterator[None]:
    """An out-of-memory inside becomes a `UserError` that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        world = accelerator.num_processes
        share = options.optim.batch_size // world
        more = next((n for n in divisors(share) if n >= 2 * passes), None)
        parts = [f"out of memory with {share // passes} images in a pass"]
        if more is not None:
            new = stage.bound(share // more, world) != stage.bound(share // passes, world)
            why = " in a new run (results depend on how many images share a pass)" if new else ""
            parts.append(f"make more passes with --optim.accumulate {more}{why}")
        raise UserError("; ".join([*parts, advice(options, stage, accelerator.device)])) from None
