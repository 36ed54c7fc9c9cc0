"""Several shard sets as one, each with its share of the samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_prep.common.errors import UserError
from data_prep.loader.damaged import DamagedList, read_or_replace
from data_prep.loader.dataset import CACHE, CACHE_BYTES, Record, ShardDataset, Transform


class ShardMixture(Dataset[Any]):
    """Map-style dataset over several shard sets, for `build_loader`.

    An epoch is as long as all sets together. Each set gives its share of it, in the order that it
    has by itself: one with less than its size is seen in part, and goes on from there in the next
    epoch; one with more is gone through again. The sets take turns at random. As with
    `ShardDataset` the order is a pure function of (seed, epoch), so samples seen are all the state.

    Args:
        roots: Folders or URLs of the shard sets.
        weights: Shares of the samples, in any unit; without them the sets' sizes, so that every
            sample comes once per epoch.
        cache, cache_bytes: For each remote set, see `ShardDataset`.
        damaged: Where given, a record that cannot be read is listed there and another one comes in
            its place, see `read_or_replace`; else it is an error.

    Raises:
        UserError: Weights that are not positive or not one for each set, or see `ShardDataset`.
    """

    def __init__(
        self,
        roots: Sequence[Path | str],
        weights: Sequence[float] | None = None,
        split: str = "train",
        seed: int = 0,
        shuffle_shards: int = 4,
        transform: Transform | None = None,
        cache: Path = CACHE,
        cache_bytes: int = CACHE_BYTES,
        damaged: Path | None = None,
    ) -> None:
        self.seed, self.transform = seed, transform
        self.sets = [
            ShardDataset(root, split, seed, shuffle_shards, cache=cache, cache_bytes=cache_bytes)
            for root in roots
        ]
        sizes = [len(part) for part in self.sets]
        if not sizes:
            raise UserError("shards: name at least one shard set")
        if weights is not None and (
            len(weights) != len(sizes) or not all(0 < weight < np.inf for weight in weights)
        ):
            raise UserError(
                f"weights: {list(weights)} must be {len(sizes)} positive numbers, one for each"
                " shard set"
            )
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])  # (sets + 1,)
        self.counts = _shares(len(self), sizes if weights is None else weights)
        """Samples of each set in an epoch."""
        self.damaged = None if damaged is None else DamagedList(damaged, len(self))
        """Records that could not be read so far; None where that is an error."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def order(self, epoch: int) -> np.ndarray:
        """(n,) int64: the indices of `epoch`; those of set k start where those of k - 1 end."""
        generator = np.random.default_rng([self.seed, epoch])
        turns = generator.permutation(np.repeat(np.arange(len(self.sets)), self.counts))  # (n,)
        order = np.empty(len(self), np.int64)
        for index, (part, count) in enumerate(zip(self.sets, self.counts, strict=True)):
            order[turns == index] = self._starts[index] + _stream(part, epoch * count, count)
        return order

    def record(self, index: int) -> Record:
        """Read and decode one record, without the transform."""
        part, position = self._locate(index)
        return part.record(position)

    def meta(self, index: int) -> dict[str, Any]:
        """The JSON of one record, see `ShardDataset.meta`."""
        part, position = self._locate(index)
        return part.meta(position)

    def __getitem__(self, item: int | tuple[int, int]) -> Any:
        """The transformed record of an index or of (index, draw), see `ShardDataset`."""
        index, draw = item if isinstance(item, tuple) else (item, item)
        if self.damaged is None:
            record = self.record(index)
        else:
            part, position = self._locate(index)
            record = read_or_replace(part, position, draw, self.damaged, index - position)
        if self.transform is None:
            return record
        return self.transform(record, np.random.default_rng([self.seed, draw]))

    def _locate(self, index: int) -> tuple[ShardDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"no record {index} among {len(self)}")
        chosen = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.sets[chosen], int(index - self._starts[chosen])


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """`total` divided by `weights` into integers, by largest remainder, none of them 0.

    Raises:
        UserError: A weight is too small for a single sample.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    if not counts.all():
        starved = f"give one of the sets none of the {total} samples"
        raise UserError(f"weights: {list(weights)} {starved}")
    return [int(count) for count in counts]


def _stream(part: ShardDataset, start: int, count: int) -> np.ndarray:
    """(count,) int64: samples start, start + 1, ... of order(0) + order(1) + ... of one set."""
    size = len(part)
    epochs = range(start // size, (start + count - 1) // size + 1)
    indices = np.concatenate([part.order(epoch) for epoch in epochs])
    first = start - epochs[0] * size
    return indices[first : first + count]
