"""What a run logs, and whether it was finite: kept on the device and looked at now and then."""

import torch
from torch import Tensor

from pretrain.engine.checkpoint import State


class Watch:
    """Sums over steps without waiting for the device.

    From the first step whose losses or gradient are not finite, `found` is 1. AdamW is given it as
    `found_inf` and then leaves weights and averages as they are, so that a look several steps later
    finds them as they were before that step.

    Args:
        state: Where the sums go on.

    Attributes:
        found: () float32, 0 or 1, always the same tensor.
    """

    def __init__(self, device: torch.device, state: State) -> None:
        self.found = torch.zeros((), device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)  # 0: none yet
        # In double precision, as they are saved: a resumed run ends with the same means.
        sums = torch.tensor(state.sums, dtype=torch.float64)
        self._sums: Tensor | None = sums.to(device) if state.sums else None
        self._summed = state.summed

    def add(self, step: int, values: Tensor, norm: Tensor, counted: bool = True) -> None:
        """Count in one step, or look at a part of one.

        Args:
            values: (n,) means over processes.
            norm: () norm of the gradient, the same in all processes.
            counted: Whether the values go into the means; otherwise they only have to be finite.
        """
        finite = values.isfinite().all() & norm.isfinite()
        self._first = torch.where((self._first == 0) & ~finite, step, self._first)
        self.found.copy_(self._first != 0)
        if not counted:
            return
        values = torch.where(self._first == 0, values.double(), 0.0)
        self._sums = values if self._sums is None else self._sums + values
        self._summed += 1

    def look(self, state: State) -> int:
        """Bring `state` up to date, and return the first step that was not finite, or 0."""
        assert self._sums is not None  # a step was counted in
        first, *state.sums = torch.cat([self._first.double()[None], self._sums]).tolist()
        state.summed = self._summed
        return int(first)

    def take_means(self, state: State) -> list[float]:
        """Means over the steps counted in, as of the last look, and start again."""
        means = [total / state.summed for total in state.sums]
        self._sums, self._summed = None, 0
        state.sums, state.summed = [], 0
        return means
