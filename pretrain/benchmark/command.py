"""`python -m pretrain benchmark`: the parts that were asked for, one after the other."""

from collections.abc import Callable

import torch

from pretrain.benchmark.attention import attention_table
from pretrain.benchmark.clock import Bench, start_clock
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
    what, program = "Encoder and objectives", "python -m pretrain benchmark"
    bench = Bench(config, *start_clock(config, what, program, PACKAGES))
    for part in config.parts:
        torch.manual_seed(0)
        PARTS[part](bench)
        if bench.device.type == "cpu":
            keep_freed_memory()
    bench.results.save()
