"""How sure a model is of each pixel: its answers to a box drawn a little differently each time.

SAM-U (Deng et al. 2023, arXiv 2307.04973) draws several boxes around an object, takes the mean of
what SAM predicts for them, and shows the entropy of that mean at each pixel as its uncertainty.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_prep.common.errors import UserError
from finetune.inference.objects import Prompt
from finetune.prompts.boxes import jitter_box


@dataclass(frozen=True)
class Spread:
    """Prompts that differ from a given one as its author might have drawn it, too."""

    boxes: int = 10
    """Boxes that are drawn."""
    jitter: float = 0.1
    """Standard deviation of a box's edges as a share of its side, see `jitter_box`."""

    def __post_init__(self) -> None:
        if self.boxes < 1:
            raise UserError(f"uncertainty: {self.boxes} boxes; it must be at least 1")
        if self.jitter < 0:
            raise UserError(f"jitter is {self.jitter}; it must not be negative")

    def around(
        self, prompt: Prompt, size: tuple[int, int], rng: np.random.Generator
    ) -> Iterator[Prompt]:
        """The prompts: the given one alone if nothing in it would differ, as without a box.

        Args:
            size: (height, width) of the image.
            rng: Source of the jitter.
        """
        if prompt.box is None or not self.jitter:
            yield prompt
            return
        for _ in range(self.boxes):
            yield replace(prompt, box=jitter_box(prompt.box, rng, size, self.jitter))


def entropy(probability: ArrayLike) -> NDArray[np.float32]:
    """Entropy in bits of whether a pixel is of the object: -p log2 p - (1 - p) log2 (1 - p).

    Args:
        probability: (...) p in 0..1.

    Returns:
        (...) from 0, sure of either, to 1, where p is one half.
    """
    p = np.asarray(probability, np.float64)
    least = np.finfo(np.float64).tiny  # 0 log 0 is 0
    bits = -p * np.log2(np.maximum(p, least)) - (1 - p) * np.log2(np.maximum(1 - p, least))
    return np.asarray(bits, np.float32)
