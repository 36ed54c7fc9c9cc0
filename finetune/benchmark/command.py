"""`python -m finetune benchmark`: the parts that were asked for, one after the other."""

from collections.abc import Callable

import torch

from finetune.benchmark.bench import Bench
from finetune.benchmark.cache import cache_table
from finetune.benchmark.clicks import clicks_table
from finetune.benchmark.config import BenchmarkOptions
from finetune.benchmark.rounds import rounds_tables
from finetune.benchmark.use import click_table, startup_table
from pretrain.benchmark.clock import start_clock
from pretrain.engine.cpu import keep_freed_memory

PACKAGES = ("torch", "segment-anything", "opencv-python-headless", "scipy")
"""Packages whose versions stand beside the figures."""

PARTS: dict[str, Callable[[Bench], None]] = {
    "clicks": clicks_table,
    "rounds": rounds_tables,
    "cache": cache_table,
    "click": click_table,
    "startup": startup_table,
}


def benchmark(config: BenchmarkOptions, resolved: str) -> None:
    """Speed and memory of stage two, as ratios from one run.

    Raises:
        UserError: A GPU is asked for, and there is none.
    """
    what, program = "Prompts and adaptation", "python -m finetune benchmark"
    bench = Bench(config, *start_clock(config, what, program, PACKAGES))
    for part in config.parts:
        torch.manual_seed(0)
        if bench.device.type == "cpu":
            keep_freed_memory()  # as training does
        PARTS[part](bench)
    bench.results.save()
