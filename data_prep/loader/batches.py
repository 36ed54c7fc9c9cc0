"""Samples to batches, divided among processes.

All epochs in a row are one endless stream; the position in it, samples seen by all processes
together, is the loader's whole state.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from data_prep.loader.signals import leave_signals_to_parent


class OrderedDataset(Protocol):
    """What `build_loader` reads: a `ShardDataset`, a mixture of them, or anything with an order."""

    def __len__(self) -> int: ...

    def order(self, epoch: int) -> np.ndarray:
        """(n,) int64: the indices of one epoch, as many as the dataset is long."""
        ...

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """The sample (index, draw), a pure function of the two."""
        ...


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """Endless batches of (index, draw) for one process of several.

    With G = batch_size * world_size, global batch k is the k-th run of G samples of
    order(0) + order(1) + ... counted from `samples_seen`, and process `rank` takes its contiguous
    part. To resume, on any number of processes, pass the samples seen so far by all of them.

    Args:
        batch_size: Samples per process and batch.
        samples_seen: Position in the stream, in samples over all processes.
    """

    def __init__(
        self,
        dataset: OrderedDataset,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        samples_seen: int = 0,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or samples_seen < 0:
            raise ValueError(f"{batch_size=}, {rank=}, {world_size=}, {samples_seen=}")
        self.dataset, self.batch_size = dataset, batch_size
        self.rank, self.world_size, self.samples_seen = rank, world_size, samples_seen

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = lru_cache(maxsize=2)(self.dataset.order)
        length = len(self.dataset)
        start = self.samples_seen + self.rank * self.batch_size
        while True:
            draws = range(start, start + self.batch_size)
            yield [(int(order(draw // length)[draw % length]), draw) for draw in draws]
            start += self.batch_size * self.world_size


def build_loader(
    dataset: OrderedDataset,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    samples_seen: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """An endless DataLoader of this process's part of the global batches.

    It is sharded already: do not pass it to `Accelerator.prepare`, which would divide it again.
    Iterate over it once; count samples seen as batches taken x batch_size x world_size.
    """
    batches = GlobalBatches(dataset, batch_size, rank, world_size, samples_seen)
    return DataLoader(
        cast("Dataset[Any]", dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_parent,
    )
