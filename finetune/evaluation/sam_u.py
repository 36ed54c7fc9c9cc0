"""A simulated user whose box is drawn several times, a little differently each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.protocols import Protocol
from finetune.inference.objects import Prompt
from finetune.inference.prompted import Answer, PromptedImage
from finetune.inference.segmenting import segment_several
from finetune.inference.uncertainty import Spread
from finetune.prompts.boxes import boxes_of


@dataclass(frozen=True)
class SamU(Protocol):
    """The exact box of the object, answered by the mean over boxes drawn around it.

    As SAM-U does (Deng et al. 2023, arXiv 2307.04973). The entropy of the mean is drawn beside the
    mask. The user has given one box.
    """

    boxes: int = 10
    """Boxes that are drawn."""
    jitter: float = 0.1
    """Standard deviation of a box's edges as a share of its side (SAM: 0.1, by at most 20
    pixels of 1024; the bound grows in proportion)."""

    def __post_init__(self) -> None:
        assert self._spread  # checks the options

    @cached_property
    def _spread(self) -> Spread:
        return Spread(self.boxes, self.jitter)

    def answers(
        self,
        prompted: PromptedImage,
        truths: NDArray[np.bool_],
        targets: Sequence[str],
        rng: np.random.Generator,
    ) -> dict[str, list[Answer]]:
        """One row."""
        found = [
            segment_several(prompted, Prompt(box=box), self._spread, rng)
            for box in boxes_of(truths)
        ]
        return {f"mean of {self.boxes} boxes": found}
