"""Images per second of real training from shards, in one process and in two."""

import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch

from data_prep.common.errors import UserError
from data_prep.common.parsing import parse_all
from data_prep.layouts.samples import Samples
from data_prep.options import WriteOptions
from data_prep.shards.write import write_shards
from pretrain import stage
from pretrain.benchmark.clock import Bench, images_of
from pretrain.config import PretrainConfig
from pretrain.engine.cpu import bf16_is_fast
from pretrain.engine.metrics import read_metrics
from pretrain.engine.optim import build_optimizer

INTERVALS = 3
"""Logged intervals of a run; the best of them but the first, which warms up, counts."""
STEPS = 4
"""Steps of an interval."""
PROCESSES = (1, 2)
"""Processes of the runs; on GPUs only as many as there are."""


def training_table(bench: Bench) -> None:
    """MAE training with loader, clipping, optimiser and log, beside its step on data in memory."""
    on_cpu = bench.device.type == "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = bench.config.shards or make_shards(folder / "shards")
        batch_size = 4 * images_of(bench.config, 224, bench.device)
        bf16 = bf16_is_fast(bench.device)
        words = recipe(bench, shards, batch_size, bf16)
        memory = batch_size / step_in_memory(bench, words)
        rows: list[list[object]] = [["step on data in memory", 1, f"{memory:.1f}", "100%"]]
        for processes in PROCESSES:
            if bench.device.type == "cuda" and torch.cuda.device_count() < processes:
                continue
            size = batch_size * (1 if on_cpu else processes)
            added = [f"--optim.batch_size={size}", f"--output={folder / f'run{processes}'}"]
            speed = train_from_shards([*words, *added], folder / f"run{processes}", processes)
            share = f"{speed / memory:.0%}"
            rows.append(["training from shards", processes, f"{speed:.1f}", share])
    bench.results.add(
        f"MAE of {bench.config.encoder_size} on 25 % of the tokens at 224 pixels with AdamW in "
        f"{'bf16' if bf16 else 'fp32'}, {batch_size} images per step"
        + (", divided among processes as the cores are." if on_cpu else " and GPU.")
    )
    bench.results.table(["training", "processes", "images per second", "against memory"], rows)


def make_shards(folder: Path) -> str:
    """A small shard set of the images that come with the installed packages."""
    layout = Samples()
    source = layout.source("samples", layout.references())
    write_shards(source, WriteOptions(output=folder, salt="benchmark"))
    return str(folder)


def recipe(bench: Bench, shards: str, batch_size: int, bf16: bool) -> list[str]:
    """Words of the command line of MAE's training, for as many steps as are timed."""
    options = {
        "data.shards": shards,
        "data.workers": 1 if bench.device.type == "cpu" else 8,
        "objectives.mae": "MaskedAutoencoding",
        "encoder_size": bench.config.encoder_size,
        "precision": "bf16" if bf16 else "no",
        "optim.steps": INTERVALS * STEPS,
        "optim.batch_size": batch_size,
        "optim.warmup_steps": 0,
        "log_every": STEPS,
        "save_every": INTERVALS * STEPS,
        "output": "run",
    }
    if bench.config.threads is not None:
        options["threads"] = bench.config.threads
    return [f"--{name}={value}" for name, value in options.items()]


def step_in_memory(bench: Bench, words: list[str]) -> float:
    """Seconds of a step on a batch that was read before: loss, gradient, clipping, optimiser."""
    (config,), _ = parse_all((PretrainConfig,), "pretrain/train.py", words)
    trained = stage.PretrainStage(config, bench.device)
    trained.model.to(bench.device)
    optimizer = build_optimizer(trained.model, config.optim)
    size = config.optim.batch_size
    batch = trained.collate([trained.dataset[i % len(trained.dataset), i] for i in range(size)])
    parameters = [p for p in trained.model.parameters() if p.requires_grad]
    seeds = count()

    def interval() -> None:
        for _ in range(STEPS):
            bf16 = config.precision == "bf16"
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bf16):
                total, _ = trained.losses(trained.model, batch, next(seeds))
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()

    return bench.clock({"interval": interval})["interval"] / STEPS


def train_from_shards(words: list[str], output: Path, processes: int) -> float:
    """Images per second that a run logs, over all its processes.

    Raises:
        UserError: The run failed.
    """
    script = Path(stage.__file__).with_name("train.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc_per_node={processes}", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        what = lines[0] if lines else f"status {done.returncode}"
        raise UserError(f"training on {processes} processes failed: {what}")
    return max(row["images_per_second"] for row in read_metrics(output)[1:])
