"""Shards written side by side by several processes, with a progress line."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from data_prep.common.errors import UserError
from data_prep.options import WriteOptions
from data_prep.records import Source
from data_prep.shards.manifest import Shard

POLL_SECONDS = 0.5


WriteShard = Callable[[Shard, Source, WriteOptions, Callable[[int], Any]], None]


def write_in_parallel(
    write_shard: WriteShard, shards: list[Shard], source: Source, options: WriteOptions
) -> None:
    """Call `write_shard` on all `shards` in `options.workers` processes (in this one if it is 1).

    Raises:
        UserError: A worker process died.
        OSError: The output could not be written.
    """
    total = sum(reference.records for shard in shards for reference in shard.references)
    with tqdm(total=total, desc="shards", unit="image", disable=not shards) as bar:
        if options.workers == 1:
            for shard in shards:
                write_shard(shard, source, options, bar.update)
            return
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        reader = replace(source, references=[])  # each shard brings its references
        with ProcessPoolExecutor(
            options.workers, context, _start_worker, (counter, write_shard, reader, options)
        ) as pool:
            pending = {pool.submit(_work, shard) for shard in shards}
            try:
                while pending:
                    done, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
                    bar.update(counter.value - bar.n)
                    for future in done:
                        future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a worker process died (out of memory, or a decoder crashed); finished shards"
                    " are kept. Run the command again: the files that were being read are then read"
                    " on their own, and one that ends its process again is quarantined"
                ) from error
            finally:
                for future in pending:
                    future.cancel()


_worker: dict[str, Any] = {}
"""What a worker process was started with; filled once, before its first shard."""


def _start_worker(
    counter: Any, write_shard: WriteShard, source: Source, options: WriteOptions
) -> None:
    _worker.update(counter=counter, write_shard=write_shard, source=source, options=options)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this process when its parent is gone, however that ended.

    A worker that lived on would write into the files of the next run.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(shard: Shard) -> None:
    def progress(records: int) -> None:
        with _worker["counter"].get_lock():
            _worker["counter"].value += records

    _worker["write_shard"](shard, _worker["source"], _worker["options"], progress)
