"""A model so small that a whole run, in a process of its own, takes a fraction of a second."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from data_prep.common.cli import Command, run_command
from data_prep.loader.dataset import Record
from data_prep.loader.mixture import ShardMixture
from pretrain.engine import loop
from pretrain.engine.run_options import OptimConfig, RunOptions
from pretrain.engine.stage import Stage


@dataclass(kw_only=True)
class TinyOptions(RunOptions):
    """A tiny run."""

    shards: str
    """Shard set."""
    workers: int = 0
    """Workers."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(steps=6, batch_size=4, warmup_steps=0, lr=0.1)
    )
    save_every: int = 2
    log_every: int = 1


def thumbnail(record: Record, generator: np.random.Generator) -> tuple[Tensor, str]:
    """(64,) pixels of a random crop."""
    y, x = generator.integers(0, 8, 2)
    return torch.from_numpy(record.image[y : y + 64 : 8, x : x + 64 : 8] / 255.0).flatten(), ""


class TinyStage(Stage):
    """An autoencoder with dropout."""

    curves = ("loss",)

    def __init__(self, options: TinyOptions, device: torch.device) -> None:
        self.dataset = ShardMixture([options.shards], seed=options.seed, transform=thumbnail)
        self.workers = options.workers
        self.model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))

    def collate(self, samples: list[Any]) -> Any:
        pixels, keys = zip(*samples, strict=True)
        return torch.stack(pixels).float(), list(keys)

    def losses(self, model: nn.Module, batch: Any, seed: int) -> Any:
        noise = torch.randn(batch[0].shape, generator=torch.Generator().manual_seed(seed))
        loss = (model(batch[0] + 0.1 * noise) - batch[0]).square().mean()
        return loss, {"loss": loss}

    def keys(self, batch: Any) -> list[str]:
        return batch[1]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        return {"encoder": self.model.state_dict()}

    def load(self, checkpoint: Any) -> None:
        self.model.load_state_dict(checkpoint.weights("encoder"))


def train_tiny(options: TinyOptions, resolved: str) -> None:
    """Run it."""
    loop.train(TinyStage, options, resolved)


def run_tiny(arguments: list[str]) -> None:
    """Run it as a command, in this process."""
    try:
        run_command("tiny", Command("tiny", f"{__name__}:train_tiny", (TinyOptions,)), arguments)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _child(arguments: list[str], output: Path, before: Callable[[], None] | None) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a program
    loop.draw_losses = lambda *_: None  # takes longer than the training
    if before is not None:
        before()
    run_tiny(arguments)
    sys.stdout.flush()


class Tiny:
    """Start tiny runs on some shards."""

    def __init__(self, shards: Path) -> None:
        self.shards = shards
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            [__name__, "torch._dynamo", "matplotlib.backends.backend_agg"]
        )

    def start(self, run: Path, *options: str, before: Callable[[], None] | None = None) -> Any:
        """A process that trains, after calling `before`; it is forked with all imports done.

        What it prints is appended to `run` with `.txt`.
        """
        arguments = [f"--shards={self.shards}", f"--output={run}", "--resume=auto", *options]
        arguments.append("--threads=1")
        target = (arguments, run.with_suffix(".txt"), before)
        process = self.context.Process(target=_child, args=target)
        process.start()
        return process

    def __call__(
        self, run: Path, *options: str, before: Callable[[], None] | None = None
    ) -> int | None:
        """Its exit status, once it has ended."""
        process = self.start(run, *options, before=before)
        process.join(100)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    @staticmethod
    def printed(run: Path) -> str:
        return run.with_suffix(".txt").read_text()


@pytest.fixture(scope="session")
def tiny(image_shards: Path) -> Tiny:
    return Tiny(image_shards)


@pytest.fixture
def same_end(read_losses: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """Whether two runs ended with the same losses, weights and optimiser, bit by bit."""

    def check(run: Path, expected: Path) -> None:
        assert (run / "DONE").is_file()
        assert read_losses(run) == read_losses(expected)
        folders = [sorted((each / "checkpoints").iterdir()) for each in (run, expected)]
        assert [path.name for path in folders[0]] == [path.name for path in folders[1]]
        for found, wanted in zip(*folders, strict=True):
            first, second = (load_file(each / "encoder.safetensors") for each in (found, wanted))
            assert all(torch.equal(first[name], second[name]) for name in second)
            states = [
                torch.load(each / "optimizer.pt", weights_only=True)["state"]
                for each in (found, wanted)
            ]
            for index, values in states[1].items():
                assert all(torch.equal(states[0][index][name], values[name]) for name in values)

    return check


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MB, which only root can make."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m tmpfs {folder} 2>/dev/null"):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.system(f"umount -l {folder}")
