"""`python -m pretrain benchmark`: the parts that were asked for, one after the other."""

from collections.abc import Callable

import torch

from data_prep.common.errors import UserError
from data_prep.common.results import Results, processor
from pretrain.benchmark.attention import attention_table
from pretrain.benchmark.clock import Bench, Clock
from pretrain.benchmark.encoder import encoder_tables
from pretrain.benchmark.memory import memory_table
from pretrain.benchmark.objectives import objective_tables
from pretrain.benchmark.training import training_table
from pretrain.config import BenchmarkOptions
from pretrain.engine.cpu import keep_freed_memory

PACKAGES = ("torch", "segment-anything", "timm", "lightly")
"""Packages whose versions stand beside the figures."""

PARTS: dict[str, Callable[[Bench], None]] = {
    "attention": attention_table,
    "encoder": encoder_tables,
    "objectives": objective_tables,
    "training": training_table,
    "memory": memory_table,
}


def benchmark(config: BenchmarkOptions, resolved: str) -> None:
    """Speed and memory of stage one, as ratios from one run.

    Raises:
        UserError: A GPU is asked for, and there is none.
    """
    name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name if config.device == "auto" else config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda is not available; use --device cpu")
    machine = f"{processor()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    title = f"Encoder and objectives: {machine}"
    results = Results(title, "python -m pretrain benchmark", config, PACKAGES)
    results.add(f"Best of up to {config.repeats} calls.")
    bench = Bench(config, device, Clock(device, config.repeats), results)
    for part in config.parts:
        torch.manual_seed(0)
        PARTS[part](bench)
        if device.type == "cpu":
            keep_freed_memory()
    results.save()
