"""Clicks that correct a prediction, at the resolution at which the decoder makes it."""

import numpy as np
from numpy.typing import NDArray

from finetune.prompts.clicks import next_click

Clicks = tuple[NDArray[np.int64], NDArray[np.int64]]
"""(n, 2) points (x, y) and (n,) labels of one mask."""
KEPT = 0.7
"""Objects of which the blocks keep less than this share are thin."""


class Corrections:
    """Clicks that correct predictions at a lower resolution than that of the truth.

    A pixel of the prediction stands for a block of the frame's; the rule (`next_click`) sees the
    blocks, of which one counts for the object where half of its pixels do. The click falls on the
    pixel of the chosen block nearest to its centre that is as the block is. Objects too thin for
    blocks are corrected pixel by pixel.

    Args:
        truths: (M, S, S).
        area: (M, S, S), where clicks may fall.
        side: Of the predictions; S is a multiple.
    """

    def __init__(self, truths: NDArray[np.bool_], area: NDArray[np.bool_], side: int) -> None:
        # Copies: a worker of the loader moves the memory of a batch's tensors to hand them over.
        self.truths, self.area = truths.copy(), area.copy()
        self.block = truths.shape[-1] // side
        self.small_truths = _most(truths, self.block)
        self.small_area = _most(area, self.block)
        kept = self.small_truths.sum((1, 2)) * self.block**2
        self.thin = kept < KEPT * truths.sum((1, 2))  # (M,)
        offsets = np.arange(self.block) - (self.block - 1) / 2
        self.from_centre = offsets[:, None] ** 2 + offsets**2  # (block, block)

    def add(
        self, predictions: NDArray[np.bool_], clicks: list[Clicks], rng: np.random.Generator
    ) -> list[Clicks]:
        """The clicks of each mask with one more; unchanged where no block is wrong.

        Args:
            predictions: (M, side, side).
        """
        return [
            self._corrected(mask, prediction, placed, rng)
            for mask, (prediction, placed) in enumerate(zip(predictions, clicks, strict=True))
        ]

    def _corrected(
        self, mask: int, prediction: NDArray[np.bool_], placed: Clicks, rng: np.random.Generator
    ) -> Clicks:
        points, labels = placed
        if self.thin[mask]:
            whole = prediction.repeat(self.block, 0).repeat(self.block, 1) & self.area[mask]
            click = next_click(whole, self.truths[mask], points, rng)
        else:
            seen = prediction & self.small_area[mask]
            click = next_click(seen, self.small_truths[mask], points // self.block, rng)
        if click is None:
            return placed
        point, label = click
        if not self.thin[mask]:
            point = self._inside(mask, point * self.block, label)
        return np.concatenate([points, point[None]]), np.append(labels, label)

    def _inside(self, mask: int, corner: NDArray[np.int64], label: int) -> NDArray[np.int64]:
        """The pixel (x, y) nearest to the centre of a block, of those that have its label."""
        x, y = corner
        block = (mask, slice(y, y + self.block), slice(x, x + self.block))
        like = (self.truths[block] == label) & self.area[block]
        row, column = divmod(int(np.where(like, self.from_centre, np.inf).argmin()), self.block)
        return corner + np.array([column, row])


def _most(masks: NDArray[np.bool_], block: int) -> NDArray[np.bool_]:
    """(M, S, S) -> (M, S / block, S / block): whether at least half of each block is True."""
    count, side = len(masks), masks.shape[-1] // block
    # rows first: whole lines are added up at once
    lines = masks.reshape(count, side, block, side * block).sum(2, dtype=np.uint16)
    blocks = lines.reshape(count, side, side, block).sum(3, dtype=np.uint16)
    most: NDArray[np.bool_] = 2 * blocks >= block**2
    return most
