"""A run killed at any instant, or between any two steps on disk, ends as if it never was."""

import os
import random
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.engine import checkpoint

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}


class DieAt:
    """SIGKILL of this process before the n-th change of a run's files, counted from 0.

    Changes are seen by Python's audit hooks, or by replacing what has none; a file of weights is
    one before it and one in its middle. All are written to a log, and what follows is not killed.
    """

    def __init__(self, run: Path, number: int) -> None:
        self.run, self.number, self.seen = str(run), number, 0

    def __call__(self) -> None:
        fsync, save_file, save = os.fsync, checkpoint.save_file, torch.save

        def fsync_of_run(descriptor: int) -> None:
            self.change("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        def save_weights(tensors: Any, path: Path) -> None:
            self.change("write", str(path))
            save_file(tensors, path)
            self.cut(path)

        def save_optimizer(values: Any, file: Any) -> None:
            save(values, file)
            file.flush()
            self.cut(Path(file.name))

        os.fsync, checkpoint.save_file, torch.save = fsync_of_run, save_weights, save_optimizer
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], str | Path):
            return
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not reads and not str(arguments[0]).endswith(".log"):
            self.change(event, os.fspath(arguments[0]))

    def change(self, event: str, path: str) -> None:
        # rmtree names files relative to a folder that it has opened
        if "tensorboard" in path or not (path.startswith(self.run) or "/" not in path):
            return
        if self.seen == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1
        with Path(self.run).with_suffix(".log").open("a") as file:
            file.write(f"{event} {path.removeprefix(self.run)}\n")

    def cut(self, path: Path) -> None:
        if self.seen == self.number:
            with path.open("r+b") as file:
                os.ftruncate(file.fileno(), path.stat().st_size // 2)
        self.change("end", str(path))


OPTIONS = ("--optim.steps=6", "--save_every=2", "--keep=1")


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert tiny(run, *OPTIONS, before=DieAt(run, -1)) == 0, tiny.printed(run)
    return run


def test_killed_between_any_two_steps_on_disk_it_ends_the_same(
    undisturbed, tiny, tmp_path, same_end
):
    """From the start of a run to its first checkpoint, in its second one and in the removal of the
    first, and from its last one to the end; all checkpoints are made alike.
    """
    events = undisturbed.with_suffix(".log").read_text().splitlines()
    begin = [events.index(f"os.mkdir /checkpoints/.step-{n:08d}.partial") for n in (2, 4, 6)]
    last = events.index("os.rename /checkpoints/.step-00000006.partial")
    tried = [*range(begin[0]), *range(begin[1], begin[2]), *range(last, len(events))]
    assert any(events[number].startswith("os.rmdir") for number in tried)
    kinds = {event.partition(" ")[0] for event in events}
    assert kinds >= {"open", "write", "end", "fsync", "os.rename", "os.remove", "os.mkdir"}

    def try_at(number: int) -> None:
        run = tmp_path / f"run{number}"
        assert tiny(run, *OPTIONS, before=DieAt(run, number)) == -signal.SIGKILL, events[number]
        assert not (run / "DONE").exists()
        assert tiny(run, *OPTIONS) == 0, f"killed before {events[number]}: {tiny.printed(run)}"
        same_end(run, undisturbed)
        assert not list(run.rglob(".*.partial"))
        shutil.rmtree(run)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(try_at, tried))


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_ten_random_instants_it_ends_the_same(workers, tiny, tmp_path, same_end):
    options = ("--optim.steps=200", "--save_every=3", f"--workers={workers}", "--log_every=2")
    expected, run = tmp_path / "expected", tmp_path / "run"
    assert tiny(expected, *options) == 0, tiny.printed(expected)
    instants = random.Random(workers)

    def size() -> int:
        metrics = run / "metrics.jsonl"
        return metrics.stat().st_size if metrics.exists() else 0

    for attempt in range(10):
        logged = size()
        process = tiny.start(run, *options)
        deadline = time.monotonic() + 60
        while size() in (0, logged):  # it has begun, and then it is any instant
            assert time.monotonic() < deadline and process.is_alive(), tiny.printed(run)
            time.sleep(0.001)
        time.sleep(instants.uniform(0, 0.2))
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"it was too fast to be killed {attempt} times"
    assert tiny(run, *options) == 0, tiny.printed(run)
    assert "resuming after step" in tiny.printed(run)
    same_end(run, expected)
