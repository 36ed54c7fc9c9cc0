"""Processes of the loader: what they do with signals, and how their errors reach the user."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.common.cli import one_line_errors
from data_prep.common.errors import UserError
from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import ShardDataset

ROOT = Path(__file__).parents[3]

TRAINING = """
import multiprocessing, signal, sys, time
from data_prep.loader.batches import build_loader
from data_prep.loader.dataset import ShardDataset

batches = iter(build_loader(ShardDataset(sys.argv[1]), 2, workers=1, collate=len))
next(batches)
asked = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: asked.append(number))
(worker,) = multiprocessing.active_children()
print(worker.pid, flush=True)
while len(asked) < 3:
    time.sleep(0.01)
time.sleep(0.2)
for _ in range(40):  # more than is prefetched
    assert next(batches) == 2
print("drew on", flush=True)
"""


def test_a_signalled_process_group_leaves_the_main_process_its_workers(shard_set):
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(shard_set)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    worker = int(process.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        os.killpg(process.pid, number)
        time.sleep(0.05)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "drew on\n", "")
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def unreadable(record, generator):
    """A transform that fails as reading does: a `UserError` with a cause."""
    try:
        raise ValueError("inner")
    except ValueError as error:
        raise UserError("shard-7.tar: does not decode; shard again") from error


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_the_same_one_line(shard_set, capsys, workers):
    loader = build_loader(ShardDataset(shard_set, transform=unreadable), 2, workers=workers)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        next(iter(loader))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: shard-7.tar: does not decode; shard again\n"
