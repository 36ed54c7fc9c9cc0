"""Peak memory of each kind of training step, each in a process of its own."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import torch

from pretrain.benchmark.clock import Bench, images_of, precisions
from pretrain.benchmark.steps import DENSE, MAE, build_step
from pretrain.engine.cpu import bf16_is_fast, use_cores
from pretrain.engine.memory import peak_memory

KINDS = (
    (DENSE, False),
    (DENSE, True),
    (MAE, False),
    ("three objectives, shared 25 %", False),
    ("three objectives, full tokens", False),
)
"""Step, and whether blocks are computed again in the backward pass."""


def memory_table(bench: Bench) -> None:
    """Peak memory of a process that does two steps, and what each further image takes."""
    precision = list(precisions(bench.device))[-1]
    bench.results.add(
        f"Peak memory of a training step at 224 pixels in {precision}, without the optimiser: of "
        "a process with one image, and what each further one adds."
    )
    header = ["step", "recomputed blocks", "GB with one image", "MB for each further image"]
    bench.results.table(header, memory_rows(bench))


def memory_rows(bench: Bench) -> Iterator[list[str]]:
    """One row per kind of step."""
    more = max(images_of(bench.config, 224, bench.device), 2)
    for name, recompute in KINDS:
        peaks = []
        for images in (1, more):
            arguments = (name, recompute, images, bench.config.encoder_size, str(bench.device))
            context = multiprocessing.get_context("spawn")  # a fork would inherit this peak
            with ProcessPoolExecutor(1, context) as pool:
                threads = torch.get_num_threads()
                peaks.append(pool.submit(measure_step, *arguments, threads).result())
        each = 1e3 * (peaks[1] - peaks[0]) / (more - 1)
        yield [name, "yes" if recompute else "no", f"{peaks[0]:.2f}", f"{each:.0f}"]


def measure_step(
    name: str, recompute: bool, images: int, encoder_size: str, device: str, threads: int
) -> float:
    """Peak memory in GB of this process after two steps; call it in a new process."""
    use_cores(1, threads)
    where = torch.device(device)
    step = build_step(name, encoder_size, where, recompute)
    batch = torch.randn(images, 3, 224, 224, device=where)
    for _ in range(2):
        step(batch, bf16_is_fast(where))
    return peak_memory(where)
