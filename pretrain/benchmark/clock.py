"""What every table of the benchmark needs: calls timed in turn, and the rate of matrix products."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.results import Results, processor
from pretrain.config import BenchmarkOptions
from pretrain.engine.cpu import bf16_is_fast

Name = TypeVar("Name", bound=Hashable)

RETRIES = 3
"""Further measurements of the matrix rate where something seems to run above it."""


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """Types that are measured, by name: bf16 too where a run would compute in it."""
    measured = {"fp32": torch.float32}
    return measured | {"bf16": torch.bfloat16} if bf16_is_fast(device) else measured


def images_of(config: BenchmarkOptions, pixels: int, device: torch.device) -> int:
    """Images in a batch of this size: as many pixels at any size, and at least one image."""
    at_224 = config.batch_size or (8 if device.type == "cpu" else 64)
    return max(1, at_224 * 224**2 // max(pixels, 224) ** 2)


class Clock:
    """Times calls in turn, so that a busy moment of the machine hits all of them.

    Args:
        repeats: Timed calls of each kind, after one that warms up.
        limit: Seconds after which calls that were timed once are not repeated.
    """

    def __init__(self, device: torch.device, repeats: int, limit: float = 60.0) -> None:
        self.device, self.repeats, self.limit = device, repeats, limit

    def __call__(self, calls: Mapping[Name, Callable[[], object]]) -> dict[Name, float]:
        """Best seconds of each call."""
        best: dict[Name, float] = {}
        began = time.perf_counter()
        for round_number in range(self.repeats + 1):
            for name, call in calls.items():
                seconds = self.seconds(call)
                if round_number:
                    best[name] = min(seconds, best.get(name, seconds))
            if best and time.perf_counter() - began > self.limit:
                break
        return best

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def start_clock(
    config: Any, what: str, program: str, packages: Sequence[str]
) -> tuple[torch.device, Clock, Results]:
    """Device, clock and document of a benchmark.

    Args:
        config: Options with `device`, `repeats` and `results`.
        what: What is measured.
        program: The command, as it is typed.
        packages: Distributions whose versions stand beside the figures.

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
    results = Results(f"{what}: {machine}", program, config, packages)
    results.add(f"Best of up to {config.repeats} calls.")
    return device, Clock(device, config.repeats), results


@dataclass
class Bench:
    """Options, device, clock and document of a benchmark."""

    config: BenchmarkOptions
    device: torch.device
    clock: Clock
    results: Results
    rates: dict[str, float] = field(default_factory=dict)
    """FLOP/s of a product of large matrices by precision, measured for the table at hand."""

    def measure_rates(self) -> str:
        """Measure the rate of matrix products anew, and put it into words."""
        self.rates = matrix_rates(self.clock, self.device)
        speeds = (f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in self.rates.items())
        return f"A product of large matrices reaches {', '.join(speeds)}."

    def shares(self, achieved: Iterable[tuple[str, float]]) -> list[float]:
        """Shares of the matrix rate, of (precision, FLOP/s).

        A share above 1 says that the rate was measured at a busy moment: it is measured again, and
        the best counts.
        """
        achieved = list(achieved)
        for _ in range(RETRIES):
            if all(speed <= self.rates[precision] for precision, speed in achieved):
                break
            again = matrix_rates(self.clock, self.device)
            self.rates = {name: max(rate, again[name]) for name, rate in self.rates.items()}
        return [speed / self.rates[precision] for precision, speed in achieved]


def matrix_rates(clock: Clock, device: torch.device) -> dict[str, float]:
    """FLOP/s of a matrix product of an encoder's shape, the practical ceiling of what follows."""
    rows, inner, columns = 4096, 768, 3072
    products = 1 if device.type == "cpu" else 4  # a GPU is to have enough to do
    calls: dict[str, Callable[[], object]] = {}
    for name, dtype in precisions(device).items():
        a = torch.randn(rows, inner, device=device, dtype=dtype)
        b = torch.randn(inner, columns, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        calls[name] = partial(_products, a, b, out, products)
    flops = products * 2 * rows * inner * columns
    return {name: flops / seconds for name, seconds in clock(calls).items()}


def _products(a: Tensor, b: Tensor, out: Tensor, count: int) -> None:
    for _ in range(count):
        torch.mm(a, b, out=out)
