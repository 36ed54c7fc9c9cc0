"""A loss that is not finite: which record gives it, and how the run can go on without it."""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_prep.common.errors import UserError
from data_prep.common.files import write_json
from data_prep.loader.batches import GlobalBatches, OrderedDataset
from pretrain.engine.checkpoint import State
from pretrain.engine.optim import step_seed
from pretrain.engine.run_options import RunOptions
from pretrain.engine.stage import Stage

FEW = 8
"""Records at most that a message names."""


def nonfinite_error(
    accelerator: Accelerator,
    options: RunOptions,
    stage: Stage,
    dataset: OrderedDataset,
    state: State,
    step: int,
) -> UserError:
    """What a run ends with after a step that was not finite. Called in all processes.

    Each writes the keys of its part of the batch, and the records that give such a loss by
    themselves, as `nonfinite-<rank>.json`.

    Args:
        dataset: What the loader read.
        state: After some more steps, in which nothing was trained.
        step: The first that was not finite.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    size, passes = options.optim.batch_size, state.passes
    seen = state.samples_seen - (state.step - step + 1) * size  # before that step
    batches = GlobalBatches(dataset, size // (world * passes), rank, world, seen)
    keys: list[str] = []
    records: list[str] = []
    with torch.no_grad(), stage.alone(), accelerator.autocast():
        for micro, drawn in enumerate(islice(batches, passes)):
            samples = [dataset[item] for item in drawn]
            keys += stage.keys(stage.collate(samples))
            records += _faulty(stage, samples, step_seed(options.seed, step, micro, rank))
    found = {"step": step, "keys": keys, "records": records}
    write_json(options.output / f"nonfinite-{rank}.json", found)
    everywhere: list[str] = gather_object(records)
    return UserError(_message(options, step, everywhere))


def _faulty(stage: Stage, samples: Sequence[Any], seed: int) -> list[str]:
    """Keys of the samples that give a loss that is not finite by themselves, found by halving."""
    batch = stage.collate(list(samples))
    total, parts = stage.losses(stage.model, batch, seed)
    if all(bool(value.isfinite().all()) for value in (total, *parts.values())):
        return []
    if len(samples) == 1:
        return list(stage.keys(batch))
    middle = len(samples) // 2
    return _faulty(stage, samples[:middle], seed) + _faulty(stage, samples[middle:], seed)


def _message(options: RunOptions, step: int, records: list[str]) -> str:
    size, kept = options.optim.batch_size, f"{options.output}/nonfinite-*.json"
    lower = f"--optim.lr {options.optim.lr / 2:g}"
    wrong = f"step {step}: a loss or gradient is not finite"
    if 0 < len(records) <= min(FEW, size // 2):
        named, them = " and ".join(records), "it" if len(records) == 1 else "them"
        out = json.dumps([*options.skip_keys, *records])
        return (
            f"{wrong}, which comes of {named}; continue without {them} by --resume auto "
            f"--skip_keys '{out}', or at a lower rate by --resume auto {lower}; the keys of the "
            f"batch are in {kept}, the last checkpoint is intact"
        )
    alone = "no single record gives one" if not records else f"{len(records)} of {size} records do"
    return (
        f"{wrong}, and {alone} alone; continue at a lower rate by --resume auto {lower}, or without"
        f" some of the batch by --skip_keys; its keys are in {kept}, the last checkpoint is intact"
    )


def without_keys(stage: Stage, keys: Sequence[str], seed: int) -> OrderedDataset:
    """The data set of a stage, without these records."""
    return WithoutKeys(stage, keys, seed) if keys else stage.dataset


class WithoutKeys:
    """A data set in which another sample stands in for each of some records.

    Which one is a pure function of (seed, draw), so that the order stays one, on any number of
    processes and after a restart.

    Args:
        stage: Names the record of a sample.
        keys: Records to leave out.
    """

    TRIES = 100

    def __init__(self, stage: Stage, keys: Sequence[str], seed: int) -> None:
        self.dataset, self.keys, self.seed = stage.dataset, frozenset(keys), seed
        self._collate, self._keys_of = stage.collate, stage.keys

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, epoch: int) -> Any:
        """The order of the data set itself."""
        return self.dataset.order(epoch)

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """The sample (index, draw), or that of another index with the same draw.

        Raises:
            UserError: Nothing but records to leave out was found.
        """
        index, draw = item
        for attempt in range(1, self.TRIES + 1):
            sample = self.dataset[index, draw]
            if self.keys.isdisjoint(self._keys_of(self._collate([sample]))):
                return sample
            generator = np.random.default_rng([self.seed, draw, attempt])
            index = int(generator.integers(len(self)))
        raise UserError("skip_keys: they leave no record to train on")
