"""How long a model works."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of work on a device.

    Attributes:
        seconds: Their sum so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside, to its end on a GPU."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds += time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
