"""When a run looks at what its devices have computed."""

import time

import torch
from accelerate import Accelerator

CHECK_EVERY = 8
"""Most steps between looks at a GPU."""
CHECK_SECONDS = 20.0
"""Slower steps are looked at more often: a scheduler waits a minute or three for the save."""


class Looks:
    """When the processes look at what their devices have computed, and agree whether to stop.

    Args:
        every: Steps between looks. None: at most `CHECK_EVERY`, and fewer where they would take
            longer than `CHECK_SECONDS`.
        step: The step after which the first steps are counted.
    """

    def __init__(self, accelerator: Accelerator, every: int | None, step: int) -> None:
        self._accelerator = accelerator
        self._fixed = every
        self._next = step + (every or 1)
        self._last, self._began = step, time.monotonic()

    def due(self, step: int) -> bool:
        """Whether all processes must look after this step."""
        return step >= self._next

    def agree(self, step: int, stop: bool) -> bool:
        """Whether any process should stop. Called by all after the same step.

        The steps until the next look follow from the mean time of a step, which is agreed on too:
        clocks differ, and a process that looks alone would wait for the others forever.
        """
        seconds = (time.monotonic() - self._began) / max(1, step - self._last)
        told = torch.tensor([float(stop), seconds], device=self._accelerator.device)
        stops, seconds = self._accelerator.reduce(told, "mean").tolist()
        every = self._fixed or max(1, min(CHECK_EVERY, int(CHECK_SECONDS / max(seconds, 1e-9))))
        self._next = step + every
        self._last, self._began = step, time.monotonic()
        return stops > 0
